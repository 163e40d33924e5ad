"""How the page looks: calm blues and greys, the system's own fonts (nothing is fetched), light and dark."""

from __future__ import annotations

from typing import Any

FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"


def page_theme() -> Any:
    """The Gradio theme; see CSS below for what it does not reach."""
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.cyan,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        font=FONT,
        font_mono=MONO,
    )
    return theme.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_50",
        button_secondary_background_fill_dark="*neutral_800",
        button_large_padding="*spacing_md *spacing_lg",
        button_large_text_weight="500",
    )


CSS = """
.gradio-container { width: 100% !important; min-width: 0 !important; max-width: 1400px !important;
  margin: 0 auto !important; padding: 34px 16px 16px !important; }
footer { display: none !important; }
:root { --v-ink: #0f2b3a; --v-soft: #52677a; --v-line: #d5dee6; --v-card: #ffffff; --v-track: #e3eaf0; --v-bar: #7fa6b8;
  --v-found: #0e7490; --v-tick: #b45309; --v-warn-ink: #7c2d12; --v-warn: #fff4e5; --v-warn-line: #f2b66d; }
.dark { --v-ink: #e6eef4; --v-soft: #9fb2c1; --v-line: #2b3b49; --v-card: #131e28; --v-track: #243440; --v-bar: #4f7486;
  --v-found: #38bdd8; --v-tick: #fbbf24; --v-warn-ink: #fed7aa; --v-warn: #33200f; --v-warn-line: #8a5418; }

.gradio-container > .main { padding: 0 !important; }
.gradio-container .html-container, .gradio-container .prose { padding: 0 !important; }
.research { position: fixed !important; top: 0; left: 0; right: 0; z-index: 60; }
.research p { margin: 0; padding: 4px 12px; border-bottom: 1px solid var(--v-warn-line); font-size: 13px; font-weight: 550;
  color: var(--v-warn-ink); background: var(--v-warn); text-align: center; }
.head { align-items: center !important; padding: 2px 0; flex-wrap: nowrap !important; }
.title .prose, .title .html-container { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px; }
.title h1 { font-size: 23px !important; font-weight: 650; margin: 0 !important; color: var(--v-ink); }
.title span { color: var(--v-soft); font-size: 14.5px; }
.appearance { max-width: 110px; }

#film-drop .wrap { padding-top: 22px; min-height: 0; font-size: 14px; line-height: 1.25; gap: 2px; }
#film-drop .wrap .icon-wrap { display: none; }
#film-drop .wrap .or { font-size: 12px; }

#gallery .grid-wrap { height: auto; min-height: 0; max-height: none; padding: 0; }
#gallery .caption-label { left: 4px; right: 4px; bottom: 4px; max-width: none; padding: 1px 4px;
  font-size: 11px; text-align: center; }
#question .submit-button { padding: 0 18px; height: 40px; border-radius: 6px; font-weight: 600; color: white;
  background: var(--button-primary-background-fill); }
#question .submit-button:hover { background: var(--button-primary-background-fill-hover); }

.film { margin: 0; color: var(--v-ink); }
.film .frame { position: relative; width: min(100%, 460px); margin: 0 auto; aspect-ratio: 1; background: #05090c;
  border-radius: 8px; overflow: hidden; display: grid; place-items: center; }
.film .frame img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; border-radius: 0; }
.film figcaption { font-size: 13px; color: var(--v-soft); padding-top: 8px; line-height: 1.45; text-align: left; }
.film figcaption b { color: var(--v-ink); font-weight: 600; overflow-wrap: anywhere; }
.film figcaption p { margin: 0 0 2px; font-size: 13px; }
.film .legend { display: inline-block; width: 84px; height: 9px; border-radius: 5px; vertical-align: baseline;
  margin: 0 5px; background: linear-gradient(90deg, #3b0f7055, #b5367acc, #fb8861, #fcfdbf); border: 1px solid var(--v-line); }

.card { border: 1px solid var(--v-line); border-radius: 8px; padding: 12px 14px; background: var(--v-card);
  color: var(--v-ink); }
.card h2 { margin: 0 0 8px; font-size: 15px; font-weight: 600; color: var(--v-ink); }
.card p { margin: 6px 0; font-size: 13.5px; line-height: 1.45; color: var(--v-ink); }
.card p.soft, .card summary, .card dl { color: var(--v-soft); font-size: 12.5px; }
.card details { margin-top: 8px; }
.card summary { cursor: pointer; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 10px; margin: 6px 0 0; }
.card dt, .card dd { margin: 0; }
.card dd { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.card .strong { font-weight: 600; }
.card .flag { border-left: 3px solid var(--v-tick); padding: 6px 0 6px 10px; margin: 10px 0; }
.card .refusal { font-size: 17px; font-weight: 600; line-height: 1.4; }

.bars { list-style: none; margin: 0 0 8px !important; padding: 0 !important; }
.bars li { display: grid; grid-template-columns: minmax(84px, 8.5em) 1fr 2.6em; gap: 10px; align-items: center;
  margin: 0; padding: 3px 0; font-size: 13.5px; color: var(--v-soft); }
.bars .name { overflow-wrap: anywhere; line-height: 1.2; }
.bars .number { text-align: right; font-variant-numeric: tabular-nums; }
.bars .fill, .regions .fill { display: block; height: 100%; border-radius: 3px; background: var(--v-bar); }
.bars .tick, .regions .tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
  background: var(--v-tick); }
.bars li.found { color: var(--v-ink); font-weight: 600; }
.bars li.found .fill { background: var(--v-found); }

.notice p { margin: 0; padding: 8px 12px; border: 1px solid var(--v-warn-line); border-radius: 6px; font-size: 14px;
  color: var(--v-warn-ink); background: var(--v-warn); overflow-wrap: anywhere; }
.note p { margin: 0; font-size: 13px; color: var(--v-soft); line-height: 1.45; }
.suggest { align-items: stretch !important; }
.suggest button { font-weight: 400 !important; font-size: 13px !important; white-space: normal; }
#chat .placeholder, #chat .placeholder-content { padding: 0 16px; text-align: center; }
.film .frame.markable { cursor: crosshair; touch-action: manipulation; }
.film .mark { position: absolute; pointer-events: none; box-sizing: border-box; }
.film .mark.inside, .film .mark.outside, .film .mark.corner { width: 14px; height: 14px; margin: -7px 0 0 -7px;
  border-radius: 50%; border: 2px solid #ffffff; box-shadow: 0 0 0 1.5px #000000; }
.film .mark.inside { background: #15803d; }
.film .mark.outside { background: #b91c1c; border-radius: 2px; }
.film .mark.corner { background: none; border-radius: 0; border-right: 0; border-bottom: 0; margin: 0; }
.film .mark.box { border: 2px dashed #ffffff; box-shadow: 0 0 0 1px #000000, inset 0 0 0 1px #000000; }

.about { color: var(--v-soft); }
.about p, .about li { margin: 2px 0; font-size: 13px; line-height: 1.4; color: var(--v-soft); }
.about h3, .card h3, .group h3 { margin: 10px 0 4px !important; font-size: 13px; font-weight: 600; color: var(--v-ink); }
.about ul { margin: 0; padding-left: 1.2em; list-style: disc; }
.about p.soft { font-size: 12px; }
.group h3 { margin: 0 !important; }
.group h3::first-letter { text-transform: uppercase; }

.about code, .note code { padding: 0 3px; border-radius: 3px; font-size: 12px; color: var(--v-ink);
  background: var(--v-track); }
.chart .form { align-items: stretch; }
.chart .block { display: flex; flex-direction: column; justify-content: flex-end; }

.regions { list-style: none; margin: 0 0 8px !important; padding: 0 !important; }
.regions li { display: grid; grid-template-columns: 14px minmax(84px, 9em) 1fr 2.6em; gap: 2px 8px; align-items: center;
  margin: 0; padding: 5px 0; font-size: 13.5px; color: var(--v-soft); }
.regions .swatch { width: 14px; height: 14px; border-radius: 3px; border: 1px solid #00000055; }
.regions .name { overflow-wrap: anywhere; line-height: 1.2; }
.regions .number { text-align: right; font-variant-numeric: tabular-nums; }
.regions .track, .bars .track { position: relative; height: 12px; border-radius: 3px; background: var(--v-track); }
.regions .detail { grid-column: 2 / -1; font-size: 12.5px; color: var(--v-soft); }
.regions a, #saved a { color: var(--v-found); text-decoration: underline; font-weight: 600; overflow-wrap: anywhere;
  margin: 0 !important; padding: 0 !important; }
.regions li.found .name { color: var(--v-ink); font-weight: 600; }
.regions li.found .fill { background: var(--v-found); }
.bars.wide li { grid-template-columns: minmax(120px, 15em) 1fr 3em; }
.bars.shares li { grid-template-columns: minmax(84px, 8.5em) 1fr 3.2em; }
.bars .middle::before { content: ""; position: absolute; left: 50%; top: -2px; bottom: -2px; width: 1px;
  background: var(--v-soft); }
.bars .middle .fill { position: absolute; top: 0; }

@media (max-width: 640px) {
  .gradio-container { padding: 36px 8px 12px !important; }
  .title h1 { font-size: 21px !important; }
  .bars li { font-size: 13px; }
  .research p { font-size: 11.5px; padding: 5px 4px; }
  #chat { height: 290px !important; }
}
"""
