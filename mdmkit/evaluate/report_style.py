"""The style sheet of a run's report: light and dark, nothing loaded from elsewhere."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --paper: #fafaf8; --card: #ffffff; --ink: #26262a; --faint: #74747c;
  --line: #e2e2dd;
  --accent: #2e86ab; --good: #2c8a4b; --bad: #c4432b; }
@media (prefers-color-scheme: dark) { :root { --paper: #17171a; --card: #202024; --ink: #e6e6ea; --faint:
  #94949e;
  --line: #34343b; --accent: #5fb3d4; --good: #5fc283; --bad: #ee7a62; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 80px; }
h1 { font-size: 28px; line-height: 1.2; margin: 2px 0 10px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 13px; margin: 44px 0 14px; font-weight: 600; text-transform: uppercase; letter-spacing:
  0.07em;
  color: var(--faint); }
header p { margin: 0; } .path { color: var(--faint); font-family: ui-monospace, Menlo, Consolas, monospace; }
.state { display: inline-block; padding: 2px 11px; border-radius: 99px; font-size: 13px; font-weight: 600;
  color: var(--accent); border: 1px solid currentColor; }
.state.good { color: var(--good); } .state.bad { color: var(--bad); }
.note { border-left: 3px solid var(--bad); padding: 6px 12px; background: var(--card); margin: 14px 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); gap: 1px; margin: 26px
  0 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.facts div { background: var(--card); padding: 11px 15px; box-shadow: 0 0 0 1px var(--line); }
.facts dt { font-size: 12px; color: var(--faint); }
.facts dd { margin: 1px 0 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 8px; }
figcaption span { color: var(--faint); font-weight: 400; margin-left: 6px; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 30px
  26px; }
.grids > div { min-width: 0; }
.grid img { display: block; max-width: 100%; height: auto; border-radius: 10px; border: 1px solid
  var(--line); }
.strip { display: flex; gap: 10px; overflow-x: auto; padding: 10px 0 6px; }
.strip figure { flex: 0 0 150px; } .strip img { width: 150px; height: auto; border-radius: 6px; display:
  block; }
.strip figcaption { color: var(--faint); font-weight: 400; font-size: 12px; margin: 2px 0 0; }
.charts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  min-width: 0; }
.chart.wide { grid-column: 1 / -1; } .chart svg { display: block; width: 100%; height: auto; }
.chart figcaption { font-size: 13px; margin-bottom: 4px; }
@media (max-width: 720px) { .charts { grid-template-columns: 1fr; } }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: 14px;
  display: block; overflow-x: auto; max-width: 100%; width: fit-content; border-radius: 10px; }
th, td { text-align: left; padding: 6px 15px; border-top: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
tr:first-child > * { border-top: 0; } th { font-weight: 500; color: var(--faint); white-space: nowrap; }
details > summary { cursor: pointer; color: var(--accent); margin-bottom: 8px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  overflow-x: auto;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""
