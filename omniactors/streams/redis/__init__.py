"""Redis Streams: the durable store that many hosts share, and the trio client that reaches it."""
