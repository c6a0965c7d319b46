import pytest

from ecgbyte_jax.run.workers import open_workers

psutil = pytest.importorskip("psutil")


def listening(_: int) -> list[str]:
    return [found.laddr.ip for found in psutil.Process().net_connections("inet") if found.status == psutil.CONN_LISTEN]


def test_nothing_listens_to_other_machines(config):
    pytest.importorskip("distributed")
    config.prepare.workers = 2
    with open_workers(config) as run:
        found = [*listening(0), *(address for _, addresses in run(listening, range(4)) for address in addresses)]
    assert set(found) == {"127.0.0.1"}
