"""The commands that work on uploads. `tusd_py.cli` imports each module only when its command is run."""
