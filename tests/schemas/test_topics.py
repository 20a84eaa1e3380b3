"""Topics under a root: which prefixes an operator may choose, and what is an inbound topic."""

import pytest

from bayesd_schemas.topics import Origin, Topics


@pytest.mark.parametrize("root", ["/", "acme/", "/acme", "a//b", "+", "a/#", "a b", "a\n", "a\0", "ä", "a" * 201])
def test_a_root_that_is_no_prefix_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="is not a topic prefix"):
        Topics(root)


@pytest.mark.parametrize("root", ["acme", "acme/tuning", "A.b_c-9", "a" * 200])
def test_a_root_stands_before_every_topic_and_is_kept(root: str) -> None:
    topics = Topics(root)
    assert topics.root == root
    assert topics.sent("w1", "tell") == f"{root}/bayesd/1/from/w1/tell"
    assert topics.parse(topics.sent("w1", "tell")) == Origin("w1", "tell")


@pytest.mark.parametrize("topic", ["from/w1/grant", "from/w1/tell/", "from/w1", "admin/op/reply", "to/w1/grant"])
def test_what_nobody_sends_to_a_daemon_is_nobodys(topic: str) -> None:
    assert Topics().parse(f"bayesd/1/{topic}") is None
