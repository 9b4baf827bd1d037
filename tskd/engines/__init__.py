"""What generates text: one file an engine (``conf/engine``)."""
