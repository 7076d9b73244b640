"""The clients of a served endpoint, blocking and asyncio."""

from serving.client.client import AsyncClient, Client, EndpointError

__all__ = ["AsyncClient", "Client", "EndpointError"]
