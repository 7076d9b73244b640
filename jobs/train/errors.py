"""Errors of training workers. Imported by the driver, the workers and Ray Train's controller."""


class NodeError(Exception):
    """An error that is of the worker's node alone, or may be."""

    def __init__(self, message: str, node_id: str) -> None:
        super().__init__(message, node_id)  # both, so that the error can be pickled
        self.node_id = node_id

    def __str__(self) -> str:
        return str(self.args[0])


class UnfitNodeError(NodeError, ValueError):
    """The worker's node cannot train: its disk is full, or it has another torch. Other nodes may."""


class StoreAccessError(NodeError, RuntimeError):
    """The worker does not reach the store: its node has no access, or the store does not answer at the moment."""
