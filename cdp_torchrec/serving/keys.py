"""The number that stands for a request in the keys of its noise."""

import hashlib

import numpy as np

from cdp_torchrec.serving.request import RequestError


def request_number(request_id: object) -> int:
    """The id itself if it is an integer of 64 bits, else a digest of the text."""
    match request_id:
        case bool():
            raise RequestError("request_id", "expected an integer or a string, found bool")
        case int() | np.integer():
            if not -(2**63) <= int(request_id) < 2**63:
                raise RequestError("request_id", "an integer beyond 64 bits")
            return int(request_id)
        case str():
            text = request_id.encode(errors="surrogatepass")
            digest = hashlib.blake2b(text, digest_size=8).digest()
            return int.from_bytes(digest, signed=True)
    raise RequestError(
        "request_id", f"expected an integer or a string, found {type(request_id).__name__}"
    )
