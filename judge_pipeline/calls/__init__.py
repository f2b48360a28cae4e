"""A judge call and its reply, and the store that remembers every finished one."""
