"""Settings of Sphinx. `build.py` copies this file beside the pages that it stages."""

project = "lxt_fx"
author = "the authors of lxt_fx"
copyright = author  # noqa: A001 - the name that Sphinx reads

extensions = ["myst_nb"]
exclude_patterns = ["_build", "_extra"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

nb_execution_mode = "off"  # the outputs are in the notebooks: python3 dev.py tutorials
nb_render_markdown_format = "myst"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # pages may begin below a heading of another level
highlight_language = "default"  # Python where it is, else plain
python_maximum_signature_line_length = 100
add_module_names = True
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "lxt_fx"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_navbar_depth": 1,
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
