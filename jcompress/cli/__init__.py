"""The command `jcompress`."""

from jcompress.cli.commands import main as main
