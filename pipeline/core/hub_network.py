"""Whether the Hugging Face hub can be reached."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

_NO_ROUTE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)


def network_error(endpoint: str | None = None) -> Exception | None:
    """The reason if a first request to the hub finds no network: no address for the host, or no route to it.

    The hub client repeats every other request five times, even without a network, and has no setting for that. Any
    other failure of the first request, such as a timeout of a slow network, is left to those.

    Args:
        endpoint: another hub (a mirror); default: that of the hub client.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(endpoint or constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the classes of the hub client's errors differ between its versions
        return error if any(_says_no_network(one) for one in _chain(error)) else None
    return None


def _says_no_network(error: BaseException) -> bool:
    return isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _NO_ROUTE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
