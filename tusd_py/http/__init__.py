"""The HTTP side: the one place that knows aiohttp's server."""
