// The atlas of algorithms: sorted by a column, filtered by several, and the address of the
// page keeps both. Without this script it is a table.
{
  // What a filter offers: what its column begins with, or those of these words that occur
  // in the column, or anywhere in the row. Its name stands in the address.
  const FILTERS = [
    { name: "P", of: "P" },
    { name: "Q", of: "Q" },
    { name: "sampler", of: "Averaged over", words: ["old", "new", "data", "replay buffer",
      "teacher", "student", "corpus", "plans", "nobody"] },
    { name: "place", of: "Enters as" },
    { name: "library", words: ["TRL", "verl", "OpenRLHF", "SB3", "CleanRL", "Spinning Up",
      "skrl", "rsl_rl", "rl_games", "TorchRL", "RLlib", "Tianshou", "OpenAI baselines",
      "acme", "InstructGPT"] },
  ];
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const text = (row, column) => row.cells[column].textContent.trim();
  const begin = (cell) => cell.match(/^[\w-]+(?: (?!of\b|and\b|over\b)[\w-]+)?/)?.[0] ?? cell;
  const has = (content, words) => new RegExp(`(?<![\\w-])${words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\w-])`, "i").test(content);

  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  function enhance(box) {
    const table = box.querySelector("table");
    if (!table || box.dataset.enhanced) return;
    box.dataset.enhanced = "yes";
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((th) => th.textContent.trim());
    const rows = [...table.tBodies[0].rows];
    const said = element("output");
    const state = () => new URL(location).searchParams;

    const keep = (name, value) => {
      const address = new URL(location);
      if (value) address.searchParams.set(name, value);
      else address.searchParams.delete(name);
      history.replaceState(history.state, "", address);
      show();
    };

    const controls = FILTERS.flatMap(({ name, of, words }) => {
      const column = names.indexOf(of);
      if (of && column < 0) return [];
      const content = (row) => (of ? text(row, column) : row.textContent);
      const choices = words?.filter((word) => rows.some((row) => has(content(row), word)))
        ?? [...new Set(rows.map((row) => begin(content(row))))].sort(compare);
      if (choices.length < 2) return [];
      const select = element("select", {}, element("option", { value: "" }, "any"),
        ...choices.map((choice) => element("option", { value: choice }, choice)));
      const fits = (row, chosen) => (words ? has(content(row), chosen) : begin(content(row)) === chosen);
      select.addEventListener("input", () => keep(name, select.value));
      return [{ name, control: select, fits }];
    });
    const field = element("input", { type: "search", autocomplete: "off" });
    field.addEventListener("input", () => keep("with", field.value));
    controls.push({
      name: "with", control: field,
      fits: (row, asked) => asked.toLowerCase().split(/\s+/).every((word) => row.textContent.toLowerCase().includes(word)),
    });

    const sort = (by) => {
      const column = names.indexOf(by.replace(/^-/, "")), down = by.startsWith("-") ? -1 : 1;
      heads.forEach((th, n) => th.setAttribute("aria-sort", n !== column ? "none" : down < 0 ? "descending" : "ascending"));
      const sorted = column < 0 ? rows : [...rows].sort((a, b) => compare(text(a, column), text(b, column)) * down);
      table.tBodies[0].append(...sorted);
    };

    const show = () => {
      const asked = state();
      for (const { name, control } of controls) control.value = asked.get(name) ?? "";
      for (const row of rows) row.hidden = !controls.every(({ control, fits }) => !control.value || fits(row, control.value));
      sort(asked.get("sort") ?? "");
      said.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    };

    heads.forEach((th, n) => {
      const button = element("button", { type: "button" }, ...th.childNodes);
      button.addEventListener("click", () => keep("sort", state().get("sort") === names[n] ? `-${names[n]}` : names[n]));
      th.append(button);
    });
    const label = ({ name, control }) =>
      element("label", {}, name === "with" ? "Show rows with" : name[0].toUpperCase() + name.slice(1), control);
    box.prepend(element("p", { className: "kl-filters" }, ...controls.map(label), said));
    show();
  }

  // The theme swaps pages without loading them, and says so here.
  const all = () => document.querySelectorAll(".kl-atlas").forEach(enhance);
  if (window.document$) window.document$.subscribe(all);
  else if (document.readyState === "loading") addEventListener("DOMContentLoaded", all);
  else all();
}
