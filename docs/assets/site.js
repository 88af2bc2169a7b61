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
}).observe(document.documentElement, { childList: true, subtree: true });
