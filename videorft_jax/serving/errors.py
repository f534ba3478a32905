"""The errors that a client is told, in the form of OpenAI's protocol."""

from typing import Any


class Refused(Exception):
    """A request that is not served, with the HTTP status and the field that is at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status, "invalid_request")

    def body(self) -> dict[str, Any]:
        """The JSON object of the reply."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    408: "slow_body",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "queue_full",
    500: "internal_error",
    503: "shutting_down",
    504: "timeout",
}
