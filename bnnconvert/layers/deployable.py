"""Modules that compute something from their parameters alone: it is computed once when they are deployed."""

from abc import abstractmethod

from torch import nn


class Deployable(nn.Module):
    """A module with a simpler form for a packed program."""

    @abstractmethod
    def deployed(self) -> nn.Module:
        """The same function in evaluation mode, bit for bit, with what depends on parameters only computed."""
