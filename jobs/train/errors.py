"""Errors of training workers. Imported by the driver, the workers and Ray Train's controller."""


class UnfitNodeError(ValueError):
    """The worker's node cannot train: its disk is full, or it does not see the dataset. Other nodes may."""

    def __init__(self, message: str, node_id: str) -> None:
        super().__init__(message, node_id)  # both, so that the error can be pickled
        self.node_id = node_id

    def __str__(self) -> str:
        return str(self.args[0])
