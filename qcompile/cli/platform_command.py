"""`qcompile platform`: what was detected, or what a simulated platform is."""

import argparse
import json

from qcompile.hardware import KNOWN, describe, platform, summary


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print(json.dumps(sorted(KNOWN), indent=2) if arguments.json else "\n".join(KNOWN))
        return 0
    where = platform(arguments.platform)
    print(json.dumps(describe(where), indent=2) if arguments.json else summary(where))
    return 0
