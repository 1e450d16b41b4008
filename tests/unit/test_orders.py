"""Each order is obeyed once, also across a restart."""

from fedhelm.v1 import fleet_pb2
from fedhelm_client.orders import Orders


def order(action="restart", identifier="r1", reason=""):
    return fleet_pb2.Order(id=identifier, action=action, reason=reason)


def test_an_order_is_obeyed_once_even_by_the_next_agent(tmp_path):
    path = tmp_path / "orders.json"
    orders = Orders(path)
    assert orders.take(order()) == "restart"
    assert orders.take(order()) is None
    assert Orders(path).take(order()) is None
    assert Orders(path).take(order("shutdown", "r2")) == "shutdown"


def test_what_cannot_be_understood_is_not_obeyed(tmp_path):
    orders = Orders(tmp_path / "orders.json")
    assert [orders.take(one) for one in (order("format"), order(identifier=""), order(identifier="x" * 65))] == 3 * [
        None
    ]
    assert not (tmp_path / "orders.json").exists()


def test_what_cannot_be_remembered_is_not_obeyed(tmp_path, caplog):
    orders = Orders(tmp_path / "missing" / "orders.json")
    assert orders.take(order()) is None
    assert "cannot be remembered" in caplog.text
    (tmp_path / "missing").mkdir()
    assert orders.take(order()) == "restart"


def test_a_damaged_memory_is_empty(tmp_path, caplog):
    (tmp_path / "orders.json").write_text("{")
    assert Orders(tmp_path / "orders.json").take(order()) == "restart"
    assert "cannot be read" in caplog.text


def test_the_memory_does_not_grow_for_ever(tmp_path):
    orders = Orders(tmp_path / "orders.json")
    for number in range(250):
        orders.take(order(identifier=f"r{number}"))
    again = Orders(tmp_path / "orders.json")
    assert again.take(order(identifier="r249")) is None
    assert (tmp_path / "orders.json").stat().st_size < 4096
