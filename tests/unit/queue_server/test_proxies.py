"""The CA of proxies is read again while the server runs; what is no CA changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from agentstream_operator.queue_server.proxies import InvalidAuthority, TrustedProxies, read_authority
from agentstream_operator.serve.request_header import RequestHeaderConfig

NAMES = frozenset({"gateway"})


def write(file: Path) -> str:
    text = trustme.CA().cert_pem.bytes().decode()
    file.write_text(text)
    return text


def telling(told: list[RequestHeaderConfig]) -> Callable[[RequestHeaderConfig], bool]:
    """Takes note of what is trusted; open connections are those of another CA from the second time on."""

    def tell(config: RequestHeaderConfig) -> bool:
        told.append(config)
        return len(told) > 1

    return tell


def test_a_ca_that_is_replaced_is_trusted_and_the_former_one_is_not(tmp_path: Path) -> None:
    file, told = tmp_path / "ca.crt", list[RequestHeaderConfig]()
    first = write(file)
    proxies = TrustedProxies(file, NAMES, telling(told))
    assert not proxies.look()
    assert [each.client_ca for each in told] == [first]
    second = write(file)
    assert proxies.look()
    assert [each.client_ca for each in told] == [first, second]
    assert (proxies.config.client_ca, proxies.config.allowed_names) == (second, NAMES)


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None]
)
def test_what_is_no_ca_is_said_and_changes_nothing(tmp_path: Path, content: bytes | None) -> None:
    file, told = tmp_path / "ca.crt", list[RequestHeaderConfig]()
    first = write(file)
    proxies = TrustedProxies(file, NAMES, telling(told))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert not proxies.look()
    assert [each.client_ca for each in told] == [first]
    with pytest.raises(InvalidAuthority, match="is not a PEM certificate"):
        read_authority(file)
