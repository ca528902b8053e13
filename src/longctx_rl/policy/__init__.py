"""The policy: body, head and chunked scoring in one module; packed attention; the frozen teacher and reference."""
