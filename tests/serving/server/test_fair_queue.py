"""An order in which nobody waits long because others ask for much."""

from cdp_torchrec.serving.server.fair_queue import Client, FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_items_of_one_client_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue(most=100)
    for name, cost in {"dear": 9.0, "cheap": 1.0, "middle": 4.0}.items():
        queue.push(name, client=Client("a", 1), cost=cost)
    assert drained(queue) == ["dear", "cheap", "middle"]


def test_a_cheap_item_passes_dear_ones_of_other_connections() -> None:
    queue: FairQueue[str] = FairQueue(most=100)
    for number in range(3):
        queue.push(f"dear {number}", client=Client("a", number), cost=100.0)
    queue.push("cheap", client=Client("a", 9), cost=1.0)
    assert queue.first() == "cheap"
    assert drained(queue) == ["cheap", "dear 0", "dear 1", "dear 2"]


def test_a_dear_item_is_not_passed_for_ever() -> None:
    queue: FairQueue[str] = FairQueue(most=100)
    queue.push("dear", client=Client("a", 1), cost=10.0)
    order = []
    for number in range(30):
        queue.push(f"cheap {number}", client=Client("b", number), cost=1.0)
        order.append(queue.pop())
    assert 5 < order.index("dear") < 15


def test_a_host_gets_no_more_by_opening_more_connections() -> None:
    queue: FairQueue[str] = FairQueue(most=100)
    for number in range(50):
        queue.push("many", client=Client("a", number), cost=1.0)
    for _ in range(5):
        queue.push("one", client=Client("b", 1), cost=1.0)
    order = drained(queue)
    assert order[:15].count("one") >= 3


def test_what_it_remembers_of_clients_is_bounded() -> None:
    queue: FairQueue[str] = FairQueue(most=100)
    queue.push("first", client=Client("a", 0), cost=1.0)
    for number in range(10_000):
        queue.push("next", client=Client("a", number), cost=1.0)
        queue.pop()
    assert len(queue._last) < 100
