from common.fingerprint import differing_fields


def test_equal_ones_differ_in_nothing():
    assert differing_fields("a=1,b=2", "a=1,b=2") == []


def test_fields_that_differ_are_named_with_both_values():
    assert differing_fields("a=1,b=2,c=3", "a=1,b=4,d=5") == [
        ("b", "2", "4"),
        ("c", "3", "absent"),
        ("d", "absent", "5"),
    ]


def test_plain_digests_are_one_field():
    assert differing_fields("9f", "a0") == [("kv_fingerprint", "9f", "a0")]
