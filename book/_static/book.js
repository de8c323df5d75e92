"use strict";

addEventListener("DOMContentLoaded", async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const listen = (buttons, act) => all(buttons).forEach((each) => each.addEventListener("click", act));
  listen(".btn-download-pdf-button", () => print());
  listen(".btn-fullscreen-button", () => toggleFullScreen());

  // Paper is white, whatever the screen.
  const page = document.documentElement.dataset;
  let theme = page.theme;
  addEventListener("beforeprint", () => { theme = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = theme; });

  // What scrolls sideways can be reached by keyboard, and shows on which side there is more.
  const names = {
    "mjx-container[display]": "Formula",
    "span.math": "Formula",
    ".pst-scrollable-table-container": "Table",
    ".cell_output > .output": "Output",
    "pre": "Code",
  };
  const look = ({ target }) => {
    // A formula holds a hidden second one for screen readers, which may be wider.
    const formula = target.matches("mjx-container, .math") && target.querySelector("mjx-math");
    const width = formula ? formula.getBoundingClientRect().width : target.scrollWidth;
    const rest = width - target.clientWidth;
    const scrolls = rest > 1 && getComputedStyle(target).overflowX === "auto";
    target.classList.toggle("more-left", scrolls && target.scrollLeft > 1);
    target.classList.toggle("more-right", scrolls && target.scrollLeft < rest - 1);
    if (scrolls) {
      const [, name] = Object.entries(names).find(([selector]) => target.matches(selector));
      target.tabIndex = 0;
      target.role = "group";
      target.ariaLabel = `${name}, scrolls sideways`;
    } else if (target.role === "group") {
      ["tabindex", "role", "aria-label"].forEach((each) => target.removeAttribute(each));
    }
  };
  const resized = new ResizeObserver((entries) => entries.forEach(look));
  const watch = (selector) =>
    all(selector).forEach((each) => {
      resized.observe(each);
      each.addEventListener("scroll", look, { passive: true });
    });
  await window.MathJax?.startup?.promise;  // formulas are there, and have their size
  Object.keys(names).forEach((selector) => watch(`article ${selector}`));
});
