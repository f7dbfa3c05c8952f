"""The report's style sheet: one for the page, one for the pictures, which are also files of their own.

Colours are variables, so that one picture serves a light page and a dark one. A picture says what a part means by its
class (``early``, ``fixed``, ``t0`` for the first transport), never by a colour.

Limits: fonts are the reader's own; nothing is fetched.
"""

from __future__ import annotations

_LIGHT = """--paper:#fdfcfa; --ink:#1c1b19; --muted:#67635b; --grid:#e4e0d8; --card:#f4f1ea; --early:#c23b22;
  --fixed:#1f7a5c; --unsure:#946200; --bar:#b9b3a6; --t0:#2f66ad; --t1:#b0631a; --t2:#7d4aa0; --link:#2f66ad;
  --right:#d7eae1; --maybe:#f6e7c6; --bad:#f3c6bd;"""
_DARK = """--paper:#15161a; --ink:#ece9e2; --muted:#a29e95; --grid:#30323a; --card:#1e2026; --early:#ff7a61;
  --fixed:#4fc39a; --unsure:#e0ad4e; --bar:#5a5c66; --t0:#82aef0; --t1:#eda35e; --t2:#c79be6; --link:#82aef0;
  --right:#1c4536; --maybe:#4d3d17; --bad:#6b2a1f;"""

_PICTURE = """
svg text { font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif; fill:var(--ink); }
svg .quiet { fill:var(--muted); } svg .rule { stroke:var(--grid); } svg .axis { stroke:var(--muted); }
svg .dashed { stroke:var(--muted); stroke-dasharray:2 4; } svg .bar { fill:var(--bar); }
svg .early { fill:var(--early); stroke:var(--early); } svg text.early { stroke:none; font-weight:600; }
svg .fixed { fill:var(--fixed); stroke:var(--fixed); } svg text.fixed { stroke:none; }
svg .t0 { fill:var(--t0); stroke:var(--t0); } svg .t1 { fill:var(--t1); stroke:var(--t1); }
svg .t2 { fill:var(--t2); stroke:var(--t2); } svg .ink { fill:var(--ink); stroke:var(--ink); }
svg polyline { fill:none !important; stroke-width:1.6; stroke-linejoin:round; } svg .bold { stroke-width:2.4; }
svg .soft { opacity:.22; stroke:none !important; } svg .guess { stroke-dasharray:6 3; }
svg .plain { stroke:none; }
"""

PICTURE_FILE = f"svg {{ {_LIGHT} background:var(--paper); }}{_PICTURE}"
"""For a picture that stands alone: on a light page."""

PAGE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
{_PICTURE}
* {{ box-sizing:border-box; }}
body {{ margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",
  Roboto,"Helvetica Neue",sans-serif; overflow-wrap:break-word; }}
main {{ max-width:64rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }}
h1 {{ font-size:clamp(1.5rem,3.2vw,2.2rem); line-height:1.22; font-weight:650; letter-spacing:-.015em;
  margin:0 0 1rem; text-wrap:balance; }}
h2 {{ font-size:1.3rem; line-height:1.3; letter-spacing:-.01em; margin:2.75rem 0 .5rem; }}
h3 {{ font-size:1rem; margin:1.75rem 0 .25rem; }}
p {{ max-width:46em; }} .lead {{ font-size:1.06rem; }} .note {{ color:var(--muted); font-size:.92rem; }}
code {{ font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }}
a {{ color:var(--link); }}
.alarm {{ border-left:.3rem solid var(--early); background:var(--card); padding:.7rem 1rem; margin:1rem 0;
  max-width:50em; }} .alarm.unsure {{ border-color:var(--unsure); }}
.alarm ul {{ margin:.3rem 0 0; padding-left:1.2rem; }}
figure {{ margin:.75rem 0 1.5rem; }} figure svg {{ display:block; width:100%; height:auto; }}
.for-narrow {{ display:none; max-width:30rem; }}
@media (max-width:44rem) {{ .for-wide {{ display:none; }} .for-narrow {{ display:block; }}
  .stack thead {{ display:none; }} .stack tr {{ display:block; padding:.5rem 0; border-bottom:1px solid var(--grid); }}
  .stack td, .stack tbody th {{ display:block; border:0; padding:.1rem 0; }} .stack tbody th {{ font-weight:600; }} }}
figcaption {{ color:var(--muted); font-size:.92rem; max-width:52em; margin-top:.5rem; }}
.legend {{ list-style:none; display:flex; flex-wrap:wrap; gap:.1rem 1.4rem; padding:0; margin:.4rem 0 0;
  font-size:.92rem; }}
.legend b {{ font-weight:400; margin-right:.35em; }} b.t0 {{ color:var(--t0); }} b.t1 {{ color:var(--t1); }}
b.t2 {{ color:var(--t2); }} b.fixed {{ color:var(--fixed); }} b.early {{ color:var(--early); }}
.four {{ list-style:none; counter-reset:four; padding:0; margin:1rem 0 2rem; display:grid; gap:.75rem;
  grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr)); }}
.four li {{ counter-increment:four; background:var(--card); border-radius:.6rem; padding:.9rem 1.1rem; }}
.four p {{ margin:0 0 .35rem; }} .four p::before {{ content:counter(four) ". "; font-weight:650; }}
.four span {{ display:block; color:var(--muted); font-size:.92rem; }}
.verdict {{ font-weight:650; font-size:.85rem; white-space:nowrap; }}
.holds, .as-predicted {{ color:var(--fixed); }}
.fails {{ color:var(--early); }} .inconclusive, .not-as-predicted {{ color:var(--unsure); }}
.not-run {{ color:var(--muted); }}
.wide {{ overflow-x:auto; }}
table {{ border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; margin:.5rem 0 1.25rem; }}
caption {{ text-align:left; color:var(--muted); padding-bottom:.35rem; font-size:.92rem; }}
caption span {{ display:block; position:sticky; left:0; max-width:min(56em,calc(100vw - 2.5rem)); }}
th {{ text-align:left; font-weight:600; color:var(--muted); padding:.35rem 1rem .35rem 0; vertical-align:bottom;
  border-bottom:1px solid var(--muted); }}
td, tbody th {{ padding:.35rem 1rem .35rem 0; border-bottom:1px solid var(--grid); white-space:nowrap;
  vertical-align:top; }} tbody th {{ color:var(--ink); font-weight:400; }}
td.text, tbody th.text {{ white-space:normal; min-width:11rem; overflow-wrap:anywhere; }}
td.right {{ background:var(--right); }} td.maybe {{ background:var(--maybe); }}
td.bad {{ background:var(--bad); font-weight:700; }} td.count {{ text-align:right; padding:.35rem .7rem; }}
details {{ border-top:1px solid var(--grid); }}
details > summary {{ cursor:pointer; font-weight:600; padding:.7rem 0; }}
details[open] > summary {{ padding-bottom:.2rem; }}
dl {{ display:grid; grid-template-columns:fit-content(40%) 1fr; gap:.2rem 1.5rem; margin:0 0 1rem; font-size:.92rem; }}
dt {{ color:var(--muted); overflow-wrap:anywhere; }} dd {{ margin:0; overflow-wrap:anywhere; min-width:0; }}
@media print {{ main {{ max-width:none; }} }}
"""
