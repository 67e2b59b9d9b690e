"""The clients: `client` (blocking) and `aio` (asyncio) over one `base`; translation by either."""
