// What the theme's own script adds to a page, made accessible.
new MutationObserver(() => {
  // Each listing gets a <nav> without a name: many equal landmarks. They are none.
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) {
    nav.setAttribute("role", "none");
  }
  // Wide tables and rows of tabs scroll inside themselves: by keyboard too.
  let scrolling = ".md-typeset__scrollwrap:not([tabindex]), .tabbed-labels:not([tabindex])";
  // Listings too: the theme does it for them where a pointer hovers, and not on a phone.
  if (matchMedia("(hover: none)").matches) scrolling += ", pre > code:not([tabindex])";
  for (const box of document.querySelectorAll(scrolling)) {
    box.setAttribute("tabindex", "0");
  }
  // The first use of a word of the glossary can be focused, which shows its meaning.
  const told = new Set();
  for (const word of document.querySelectorAll("article abbr")) {
    const term = word.textContent;
    if (term === "P" || term === "Q") word.classList.add(`kl-${term.toLowerCase()}`);
    if (told.has(term) || word.closest("a, h1, h2, h3, summary, label, button")) continue;
    told.add(term);
    if (!word.hasAttribute("tabindex")) word.setAttribute("tabindex", "0");
  }
}).observe(document.documentElement, { childList: true, subtree: true });
