import pytest

from ecgbyte_jax.prepare.workers import open_workers
from ecgbyte_jax.settings import Settings

psutil = pytest.importorskip("psutil")


def listening(_: int) -> list[str]:
    return [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_nothing_listens_to_other_machines(config):
    pytest.importorskip("distributed")
    config.prepare.workers = 2
    with open_workers(Settings.of(config).prepare) as run:
        listeners = [*listening(0), *(address for _, addresses in run(listening, range(4)) for address in addresses)]
    assert set(listeners) == {"127.0.0.1"}
