"""How the page of a report looks, on a light and on a dark screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #60666e; --line: #dde1e6; --paper: #fff; --card: #f6f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa1a9; --line: #363b42; --paper: #16181b; --card: #1f2226 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1180px; padding: 24px 28px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 28px } h2 { margin: 40px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line) }
h2 { font-size: 20px } h3 { margin: 26px 0 8px; font-size: 16px } h4 { margin: 0 0 8px; font-size: 14px }
header p, .hint, h4 span { color: var(--dim) } header p, .hint { margin: 4px 0 }
h4 { display: flex; justify-content: space-between; gap: 12px; overflow-wrap: anywhere } h4 span { font-weight: 400 }
code, pre, td { font-family: ui-monospace, monospace; font-size: 13px }
code, pre { overflow-wrap: anywhere; white-space: pre-wrap; margin: 0 }
table { border-collapse: collapse; margin: 8px 0; display: block; overflow-x: auto }
th { text-align: left; font-weight: 500 } thead th { color: var(--dim); font-size: 13px; text-align: right }
th, td { padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line) } td { text-align: right }
.pairs th { color: var(--dim); font-size: 13px; white-space: nowrap; vertical-align: top }
.pairs td { text-align: left }
#notes ul { list-style: none; padding: 0; margin: 0 }
#notes li { display: flex; gap: 16px; padding: 6px 12px; margin: 6px 0; background: var(--card) }
#notes li { border-left: 3px solid var(--line) } time { color: var(--dim); font-size: 13px; white-space: nowrap }
#notes .SUCCESS { border-color: #28aa46 } #notes .WARNING { border-color: #f0961e }
#notes .ERROR, #notes .CRITICAL { border-color: #dc3228 }
#cases .hint { margin-bottom: 12px } .cases { display: flex; flex-wrap: wrap; gap: 16px }
article { background: var(--card); border-radius: 8px; padding: 12px 14px } figure { margin: 0 }
.panels { display: flex; flex-wrap: wrap; gap: 8px } .panels figure { flex: 1 1 230px; max-width: 340px }
.panels img { display: block; width: 100% } article { flex: 1 1 auto }
.panels figcaption { text-align: center; color: var(--dim); font-size: 13px }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 20px }
.chart { background: var(--card); border-radius: 8px; padding: 10px 12px } .chart svg { width: 100%; display: block }
.chart figcaption { display: flex; justify-content: space-between; flex-wrap: wrap; gap: 2px 16px; font-size: 14px }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; color: var(--dim); font-size: 13px }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: middle }
svg text { fill: var(--dim); font-size: 11px; font-variant-numeric: tabular-nums } svg path { fill: none }
svg path { stroke-linejoin: round; stroke-linecap: round } .axis { stroke: var(--dim) } .grid { stroke: var(--line) }
details summary { cursor: pointer; color: var(--dim) }
"""
