"""PostgreSQL: the only package that holds SQL and knows its driver."""
