"""The weights before training: random, but for one circuit planted by hand.

Looking up "what followed this token the last time" takes two attention layers that are useless
without each other (induction heads, Olsson et al. 2022, arXiv:2209.11895). From random weights a
model this small needs far more text to find them than this script can afford: after a million
tokens of nothing but repetition it had not. Planted, repeating works before the first step
(0.4 nats per token where chance is 8), and training only has to refine it. In the spirit of
mimetic initialisation (Trockman and Kolter 2023, arXiv:2305.09828).

The residual stream of hidden_size dimensions starts out as

    [ 1 constant | token identity, random ... | 64 empty: the previous token's identity ]
"""

import torch
from torch import Tensor

from scripts.bundled_model.network import Attention, Network

IDENTITY_STD = 0.1  # of the token identity in an embedding
CONSTANT_SHARE = 0.5  # of the constant, relative to the identity's norm
PREVIOUS_GAP = 8.0  # attention logits by which the previous token leads its neighbours
MATCH_GAP = 40.0  # attention logits by which a matching token leads the others
FASTEST = 8  # rotary pairs that tell neighbouring positions apart
SLOW_FROM = 20  # rotary pairs from here on hardly turn within some hundred tokens


def initialise(network: Network) -> None:
    """Set all weights, from torch's global generator."""
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = network.shape.hidden_size**-0.5
            torch.nn.init.normal_(parameter, std=deviation * (0.03 if is_output else 1.0))
    with torch.no_grad():
        plant_embeddings(network)
        plant_previous_token_head(network)
        plant_lookup_heads(network)


def plant_embeddings(network: Network) -> None:
    """The constant, the random identities and the empty dimensions described above."""
    weight, head_dim = network.model.embed_tokens.weight, network.shape.head_dim
    torch.nn.init.normal_(weight, std=IDENTITY_STD)
    weight[:, -head_dim:] = 0.0
    weight[:, 0] = CONSTANT_SHARE * IDENTITY_STD * network.shape.hidden_size**0.5


def attention_of(network: Network, layer: int) -> Attention:
    """The attention of a layer."""
    attention = network.model.layers[layer].self_attn
    assert isinstance(attention, Attention)
    return attention


def plant_previous_token_head(network: Network) -> None:
    """Layer 0, head 0: every token looks one back and notes the identity it finds there."""
    attention, head_dim = attention_of(network, 0), network.shape.head_dim
    q, k, v, o = head_weights(attention, 0, 0)
    turns = network.shape.rope_theta ** -(torch.arange(FASTEST) * 2 / head_dim)  # per position
    lead = (1 - turns.cos()).sum()  # of distance one over distance zero, for unit vectors
    embedding = network.model.embed_tokens.weight[0]
    constant = embedding[0] / embedding.square().mean().sqrt()  # once normalised
    size = (PREVIOUS_GAP * head_dim**0.5 / lead).sqrt() / constant
    pair = torch.arange(FASTEST)
    # The query is the constant; the key is the constant turned by one position.
    q[pair, 0] = size
    k[pair, 0] = size * turns.cos()
    k[pair + head_dim // 2, 0] = size * turns.sin()
    every = torch.arange(head_dim)
    v[every, 1 + every] = 1.0
    o[network.shape.hidden_size - head_dim + every, every] = 1.1 * IDENTITY_STD


def plant_lookup_heads(network: Network) -> None:
    """Layer 1: where the previous token is the one I am, copy the identity of what stands there.

    One head per key and value head; each copies head_dim dimensions of the identity.
    """
    attention, head_dim = attention_of(network, 1), network.shape.head_dim
    pair = torch.arange(SLOW_FROM, head_dim // 2)
    dims = torch.cat((pair, pair + head_dim // 2))
    compared = torch.arange(len(dims))
    size = (2 * MATCH_GAP * head_dim**0.5 / (len(dims) * 0.7)) ** 0.5 * 0.7
    every = torch.arange(head_dim)
    groups = network.shape.num_heads // network.shape.num_kv_heads
    for kv_head in range(network.shape.num_kv_heads):
        q, k, v, o = head_weights(attention, kv_head * groups, kv_head)
        q[dims, 1 + compared] = size
        k[dims, network.shape.hidden_size - head_dim + compared] = size
        copied = 1 + kv_head * head_dim + every
        v[every, copied] = 1.0
        o[copied, every] = 3 * IDENTITY_STD


def head_weights(attention: Attention, head: int, kv_head: int) -> list[Tensor]:
    """Views of one head's query, key, value and output weights, all set to zero."""
    size = attention.head_dim
    query, key_value = (
        slice(head * size, (head + 1) * size),
        slice(kv_head * size, (kv_head + 1) * size),
    )
    views = [
        attention.q_proj.weight[query],
        attention.k_proj.weight[key_value],
        attention.v_proj.weight[key_value],
        attention.o_proj.weight[:, query],
    ]
    for view in views:
        view.zero_()
    return views
