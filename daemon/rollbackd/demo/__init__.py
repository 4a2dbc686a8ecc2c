"""The sample application, the embedded PostgreSQL and the story that `rollbackd demo` tells with them."""
