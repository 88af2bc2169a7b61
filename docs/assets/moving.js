// Figures that move. What a setting says and all data of its picture were computed when the
// site was built; Vega draws them, and is asked for when a reader reaches for a control.
{
  const runtime = new URL("vega.js", document.currentScript.src);
  const figures = new WeakMap();

  const known = (figure) => {
    if (!figures.has(figure)) {
      figures.set(figure, JSON.parse(figure.querySelector("template").content.textContent));
    }
    return figures.get(figure);
  };

  // The picture takes the place of the still one, with its description.
  const draw = async (figure, spec) => {
    await import(runtime);
    const still = figure.querySelector("svg");
    const box = document.createElement("div");
    const { view } = await vegaEmbed(box, spec, {
      actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg",
    });
    box.removeAttribute("aria-roledescription");
    for (const name of ["role", "aria-label"]) box.setAttribute(name, still.getAttribute(name));
    still.replaceWith(box);
    return view;
  };

  const reach = (event) => {
    const figure = event.target.closest?.(".kl-moves")?.closest("figure");
    if (!figure) return undefined;
    const data = known(figure);
    data.view ??= draw(figure, data.spec).catch(() => { data.view = undefined; });
    return figure;
  };

  const move = async (event) => {
    const figure = reach(event);
    if (!figure) return;
    const { moves, says, view } = known(figure);
    const controls = [...figure.querySelectorAll("input, select")];
    const chosen = controls.map((control) => Number(control.selectedIndex ?? control.value));
    // Where the setting stands among all: the last control changes fastest.
    const at = moves.reduce((sum, [, values], n) => sum * values.length + chosen[n], 0);
    figure.querySelector(".kl-says").textContent = says[at];
    moves.forEach(([, , labels], n) => {
      if (controls[n].type !== "range") return;
      controls[n].setAttribute("aria-valuetext", labels[chosen[n]]);
      controls[n].closest("p").querySelector("output").textContent = labels[chosen[n]];
    });
    const drawn = await view;
    if (!drawn) return; // not fetched: the numbers are right all the same
    moves.forEach(([name, values], n) => drawn.signal(name, values[chosen[n]]));
    await drawn.runAsync();
  };

  for (const way of ["focusin", "pointerover", "touchstart"]) {
    document.addEventListener(way, reach, { passive: true });
  }
  document.addEventListener("input", move);
}
