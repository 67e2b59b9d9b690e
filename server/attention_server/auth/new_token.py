"""The command `attention-token NAME`: make a token and its table for the token file."""

import argparse
import json
import sys
from typing import get_args

from attention_server.auth.callers import digest_of, new_token
from attention_server.domain.call import Right


def main() -> None:
    """Print the table for the token file on stdout, and the token, which is stored nowhere, on stderr."""
    parser = argparse.ArgumentParser(
        "attention-token",
        description="Makes a token for a caller. What belongs into the file of tokens goes to stdout, to be appended; "
        "the token itself goes to stderr, once.",
    )
    parser.add_argument("name", help="whose it is, in logs and limits")
    parser.add_argument(
        "--rights", nargs="*", choices=get_args(Right), default=["attend"], help="what it may do (default: attend)"
    )
    arguments = parser.parse_args()
    token = new_token()
    # A JSON string is a valid basic string of TOML.
    sys.stdout.write(
        f"[{json.dumps(arguments.name)}]\nsha256 = {json.dumps(digest_of(token))}\n"
        f"rights = {json.dumps(arguments.rights)}\n"
    )
    sys.stdout.flush()
    sys.stderr.write(f"{token}\n")


if __name__ == "__main__":
    main()
