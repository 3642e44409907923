"""The command line: what `python3 -m qlora_kit COMMAND` does."""
