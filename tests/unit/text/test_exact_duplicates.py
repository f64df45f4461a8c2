from validation.data.exact_duplicates import KEY_SIZE, exact_key


def test_equal_contents_have_equal_keys():
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    keys = [
        exact_key("Hello"),
        exact_key("Hello "),
        exact_key(""),
        exact_key("\ud800"),
        exact_key(messages),
        exact_key(messages[:1]),
        exact_key([messages[0] | {"role": "system"}, messages[1]]),
        exact_key(str(messages)),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY_SIZE}
    assert exact_key([{"content": "Hello", "role": "user"}]) == exact_key(messages[:1])
