"""The ways in which a fake node can fail."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """What a fake node does wrong, from the next request on, until it is healed.

    A fault strikes the requests that compute (embed, chat, generate); ``/api/version``,
    ``/api/tags`` and the like go on as if nothing were wrong, as they do on a real server whose
    model has died, unless the node was made with ``faults_probes=True``. REFUSE strikes all.
    """

    ERROR_500 = "status 500: the process that runs the model is gone"
    BUSY_503 = "status 503: the queue is full"
    BAD_400_RUNNER = "status 400, though it is a dead runner and not a bad request"
    HANG = "accepts the request and never answers"
    RESET = "breaks the connection in the middle of the body"
    CUT_JSON = "ends the answer properly, in the middle of its JSON"
    HTML = "status 200 and a web page, as a captive portal or a wrong port answers"
    HTML_502 = "status 502 and a web page, as a reverse proxy answers for a dead server"
    NAN = "computes NaN: an error where the answer is JSON, NaN itself in base64"
    WRONG_DIM = "vectors one number too long"
    TOO_FEW = "one vector too few"
    STREAM_ERROR = "a line with an error in the middle of a stream (embeddings are unharmed)"
    STREAM_CUT = "a stream that ends without its last line (embeddings are unharmed)"
    SLOW_BODY = "the body comes in ten pieces, `seconds_per_piece` apart"
    REFUSE = "refuses connections and breaks those there are, as a dead process does"
