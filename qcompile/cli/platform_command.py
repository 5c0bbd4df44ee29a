"""`qcompile platform`: what was detected, or what a simulated platform is."""

import argparse
import json

from qcompile.hardware import KNOWN, describe, platform, summary
from qcompile.recognize.readers import formats_of_others


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print(json.dumps(sorted(KNOWN), indent=2) if arguments.json else "\n".join(KNOWN))
        return 0
    where = platform(arguments.platform)
    formats = formats_of_others()
    if arguments.json:
        print(json.dumps({**describe(where), **({"formats": formats} if formats else {})}, indent=2))
        return 0
    print(summary(where))
    for name, wrong in formats.items():
        print(f"format {name}: {wrong or 'read by another distribution'}")
    return 0
