"""`make demo`: boots the lab, tells the story on the terminal, and writes it as a page with a timeline."""

import html
import sys
import time
from pathlib import Path

from lab import guest_image
from lab.node import REPOSITORY, LabUnavailable, pick
from lab.story import Event, Story

REPORT = REPOSITORY / "build" / "demo.html"
_COLOURS = {"step": "#4472c4", "proof": "#2e9e5b", "failed": "#c0392b"}


def main() -> int:
    """Tell the story; returns 0 when every proof held."""
    started = time.monotonic()
    try:
        kind = pick()
    except LabUnavailable as reason:
        print(f"the lab can't run here: {reason}", file=sys.stderr)
        return 2
    guest_image.build()
    print("booting the node ...", flush=True)
    failure: Exception | None = None
    with kind() as node:
        print(f"the node is up after {time.monotonic() - started:.1f} s", flush=True)
        story = Story(node=node, say=_say)
        try:
            story.tell()
        except Exception as error:
            failure = error
    write_report(story.events, REPORT, kind.kind)
    proofs = [event for event in story.events if event.kind == "proof"]
    held = sum(event.passed for event in proofs)
    print(f"\n{held} of {len(proofs)} proofs held, {time.monotonic() - started:.0f} s in all")
    print(f"report: {REPORT.relative_to(REPOSITORY)}")
    if failure is not None:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


def _say(event: Event) -> None:
    mark = "FAILED" if not event.passed else "PROVED" if event.kind == "proof" else "  ok  "
    print(f"[{event.started:6.1f} s +{event.ended - event.started:5.1f}] {mark} {event.title}", flush=True)
    if event.found:
        print(f"                        {event.found[:400]}", flush=True)


def write_report(events: list[Event], path: Path, kind: str) -> None:
    """The story as one self-contained page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(_row(event) for event in events)
    path.write_text(_PAGE.format(kind=html.escape(kind), timeline=_timeline(events), rows=rows))


def _row(event: Event) -> str:
    state = "failed" if not event.passed else event.kind
    return (
        f'<tr class="{state}"><td>{event.started:.1f}</td><td>{event.ended - event.started:.2f}</td>'
        f"<td>{html.escape(event.title)}</td><td><code>{html.escape(event.found)}</code></td></tr>"
    )


def _timeline(events: list[Event]) -> str:
    """One bar a step, to scale, as inline SVG."""
    end = max((event.ended for event in events), default=1.0)
    height = 22
    bars = []
    for number, event in enumerate(events):
        left, width = 420 + event.started / end * 760, max(2.0, (event.ended - event.started) / end * 760)
        colour = _COLOURS["failed" if not event.passed else event.kind]
        y = number * height + 24
        bars.append(
            f'<text x="410" y="{y + 12}" text-anchor="end">{html.escape(event.title[:62])}</text>'
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="15" rx="3" fill="{colour}">'
            f"<title>{html.escape(event.title)}: {event.ended - event.started:.2f} s</title></rect>"
        )
    ticks = "".join(
        f'<text x="{420 + part * 190}" y="14" text-anchor="middle">{end * part / 4:.0f} s</text>'
        f'<line x1="{420 + part * 190}" x2="{420 + part * 190}" y1="18" y2="{len(events) * height + 24}" stroke="#ddd"/>'
        for part in range(5)
    )
    return f'<svg viewBox="0 0 1200 {len(events) * height + 30}" role="img">{ticks}{"".join(bars)}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sealed-local: the main job, end to end</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #222 }}
svg {{ width: 100%; font: 12px system-ui, sans-serif; fill: #333 }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #ddd; padding: .35rem .5rem; text-align: left;
vertical-align: top }} td:nth-child(-n+2) {{ text-align: right; white-space: nowrap }} td:nth-child(3) {{ width: 30% }}
code {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }}
.proof td:nth-child(3)::before {{ content: "proved: "; color: #2e9e5b; font-weight: 600 }}
.failed td:nth-child(3)::before {{ content: "FAILED: "; color: #c0392b; font-weight: 600 }}
</style></head><body>
<h1>sealed-local: the main job, end to end</h1>
<p>A claim's worth of storage is carved out with LVM, handed over as a Kata direct volume, unlocked in an attested guest,
survives the guest's death, and is deleted. Blue: steps. Green: proofs. The node was: {kind}; the guest an emulated
virtual machine, so times compare with each other only.</p>
{timeline}
<table><tr><th>at s</th><th>took s</th><th>step</th><th>what was found</th></tr>
{rows}
</table></body></html>
"""


if __name__ == "__main__":
    sys.exit(main())
