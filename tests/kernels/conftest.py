import pytest
import torch


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Tests about threads set their own count; for the others more would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
