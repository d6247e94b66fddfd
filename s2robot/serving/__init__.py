"""Remote policies: wire format, server and client."""
