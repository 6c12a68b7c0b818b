"""Colours of the page, for light and for dark screens, and its style sheet."""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "panel": "#f4f6f9",
    "text": "#1b1f24",
    "quiet": "#57606a",
    "grid": "#d5dae1",
    "before": "#6e7781",
    "after": "#0a5cad",
    "good": "#116329",
    "good-page": "#dff5e5",
    "bad": "#8a3a0b",
    "bad-page": "#ffeddc",
    "plain": "#444c56",
    "plain-page": "#e6eaef",
    "low-text": "#0d1117",
    "high-text": "#ffffff",
    "level0": "#eef5fc",
    "level1": "#d6e6f5",
    "level2": "#b5d1ec",
    "level3": "#88b6de",
    "level4": "#5b97cd",
    "level5": "#3072b1",
    "level6": "#1a5799",
    "level7": "#083670",
}
"""By role; the levels are the shades of a heat map, from little to much."""

DARK: Mapping[str, str] = {
    "page": "#0f1419",
    "panel": "#181f27",
    "text": "#e6edf3",
    "quiet": "#9aa7b4",
    "grid": "#2f3945",
    "before": "#8b98a5",
    "after": "#6cb6ff",
    "good": "#7ee2a8",
    "good-page": "#10301f",
    "bad": "#ffb37c",
    "bad-page": "#3a2213",
    "plain": "#b8c4cf",
    "plain-page": "#28313b",
    "low-text": "#ffffff",
    "high-text": "#0d1117",
    "level0": "#17212c",
    "level1": "#1b3148",
    "level2": "#1f4468",
    "level3": "#255a8b",
    "level4": "#3270a9",
    "level5": "#64a0dc",
    "level6": "#9cc6f2",
    "level7": "#d9ecff",
}
"""The same roles."""

HIGH = 5
"""The first level whose text is the `high-text`."""

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1040px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.5rem 0 .5rem;padding-top:1rem;
 border-top:1px solid var(--grid)}
h3{font-size:.95rem;margin:1.25rem 0 .25rem}
p{margin:.5rem 0;max-width:46rem;overflow-wrap:anywhere}
.small,.key,caption,summary{font-size:.85rem;color:var(--quiet)}
.alarm{background:var(--bad-page);color:var(--bad);padding:.6rem .8rem;
 border-left:4px solid var(--bad)}
.cards{display:grid;gap:12px;padding:0;margin:1rem 0;list-style:none;
 grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}
.cards li{background:var(--panel);padding:12px 14px;border-radius:8px;min-width:0;
 overflow-wrap:anywhere}
.cards b{display:block;font-size:1.35rem;line-height:1.3}
.cards .small{display:block;margin-bottom:.4rem}
.label{display:inline-block;font-size:.8rem;line-height:1.5;padding:0 .5em;
 border-radius:4px;color:var(--plain);background:var(--plain-page);
 border:1px solid currentColor}
.label.good{color:var(--good);background:var(--good-page)}
.label.bad{color:var(--bad);background:var(--bad-page)}
.label.simulated{border-style:dashed}
.scroll{overflow-x:auto;margin:.75rem 0}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--after);
 outline-offset:2px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.3rem}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;
 border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600}
tbody th{font-weight:400;white-space:normal;overflow-wrap:anywhere;min-width:9rem}
.number{text-align:right}
@media(max-width:560px){
 table{font-size:.78rem}
 th,td{white-space:normal;padding-right:.5rem}
 tbody th{min-width:5rem}
 .tight{font-size:.72rem}
 .tight th,.tight td{min-width:0;padding-right:.35rem;overflow-wrap:break-word}
 .tight .label{font-size:.68rem;padding:0 .25em}
}
details{margin:.75rem 0}
summary{cursor:pointer}
pre{background:var(--panel);padding:12px;border-radius:8px;overflow-x:auto;
 font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem;
 font-size:.9rem;overflow-wrap:anywhere}
dt{color:var(--quiet)}
dd{margin:0}
.plot{margin:.75rem 0}
.plot.margin{padding-left:52px}
.plot svg{display:block;overflow:visible}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
 fill:var(--text)}
svg .name{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
svg .note,svg .value{fill:var(--quiet);font-size:11px}
svg .halo{fill:var(--text);stroke:var(--page);stroke-width:3px;paint-order:stroke}
.grid{stroke:var(--grid)}
.band{fill:var(--panel)}
rect.before{fill:none;stroke:var(--before)}
rect.after{fill:var(--after);stroke:var(--after)}
.curve{fill:none;stroke:var(--after);stroke-width:2px;stroke-linejoin:round}
.dot,.measured{fill:var(--after)}
.predicted{fill:var(--page);stroke:var(--before);stroke-width:1.5px}
.chosen{fill:none;stroke:var(--text);stroke-width:1.5px}
.sample{fill-opacity:.45}
.sample.before{fill:var(--before)}
.sample.after{fill:var(--after)}
.box{fill:none;stroke:var(--text)}
.median{stroke:var(--text);stroke-width:2px}
.cell{stroke:var(--page)}
.cell.none{fill:var(--panel)}
svg .on{font-size:11px;fill:var(--low-text)}
svg .on.none{fill:var(--text)}
.key{list-style:none;padding:0;margin:.5rem 0;display:flex;flex-wrap:wrap;gap:0 1.2rem}
ol.key{list-style:decimal inside}
.key li{overflow-wrap:anywhere;min-width:0}
.mark{display:inline-block;width:14px;height:10px;vertical-align:-1px;
 border:1px solid var(--before)}
.mark.after{background:var(--after);border-color:var(--after)}
.mark.dot{width:10px;border-radius:50%;background:var(--after);
 border-color:var(--after)}
.mark.diamond{width:9px;height:9px;transform:rotate(45deg);margin-right:3px}
.mark.ring{width:13px;height:13px;border-radius:50%;border-color:var(--text)}
.shade{display:inline-block;width:22px;height:12px;vertical-align:-1px;
 outline:1px solid var(--before);outline-offset:-1px}
"""


def style_sheet() -> str:
    """The whole style sheet."""
    shades = []
    for level in range(sum(name.startswith("level") for name in LIGHT)):
        colour = f"var(--level{level})"
        shades.append(f".level{level}{{fill:{colour};background:{colour}}}")
        if level >= HIGH:
            shades.append(f"svg .on.level{level}{{fill:var(--high-text)}}")
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
        f"@media(prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
        f"{_RULES.strip()}\n" + "\n".join(shades)
    )


def _variables(colours: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())
