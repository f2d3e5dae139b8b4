"""Why a request that may be right is not answered."""


class QueueFullError(RuntimeError):
    """As many requests as allowed are waiting."""


class StoppingError(RuntimeError):
    """The server accepts no more requests."""
