"""PyLate's targets, as data; read by the host without importing PyLate."""
