// The function that brings an explorer to life. vae_book/explorer.py puts it into the page and calls
// it with what it has exported. It needs no library and no network, and leaves no global name.
(id, content) => {
  "use strict";
  const {layers, classes, circles, limit} = content;
  const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);

  // For each kind of layer: from its description and the shape of what goes in, a function that
  // computes the layer, and the shape of what comes out.
  const kinds = {
    Linear({weight, bias}) {
      const [w, b] = [floats(weight), floats(bias)];
      const row = (x, start, at) => {
        let sum = start;
        for (let i = 0; i < x.length; i++) sum += w[at + i] * x[i];
        return sum;
      };
      return [x => b.map((start, i) => row(x, start, i * x.length)), [b.length]];
    },
    ReLU: (_, shape) => [x => x.map(v => Math.max(v, 0)), shape],
    Sigmoid: (_, shape) => [x => x.map(v => 1 / (1 + Math.exp(-v))), shape],
    Unflatten: ({shape}) => [x => x, shape],
    ConvTranspose2d({weight, bias, kernel, stride, padding, extra}, [channels, height, width]) {
      const [w, b] = [floats(weight), floats(bias)];
      const [tall, wide] = kernel, [down, right] = stride, [top, left] = padding;
      const maps = b.length;
      const rows = (height - 1) * down - 2 * top + tall + extra[0];
      const columns = (width - 1) * right - 2 * left + wide + extra[1];
      const sums = new Float64Array(rows * columns * maps);  // the maps of a pixel side by side
      // Each number that goes in is stamped onto the image, once in each map, by its kernel.
      const stamp = (value, c, row, column) => {
        for (let k = 0; k < tall; k++) for (let l = 0; l < wide; l++) {
          const r = row * down + k - top, s = column * right + l - left;
          if (r < 0 || r >= rows || s < 0 || s >= columns) continue;
          const to = (r * columns + s) * maps, from = ((c * tall + k) * wide + l) * maps;
          for (let m = 0; m < maps; m++) sums[to + m] += value * w[from + m];
        }
      };
      const step = x => {
        sums.fill(0);
        for (let c = 0, i = 0; c < channels; c++)
          for (let row = 0; row < height; row++)
            for (let column = 0; column < width; column++, i++)
              if (x[i]) stamp(x[i], c, row, column);  // after a ReLU half of them are zero
        const pixels = rows * columns, y = new Float32Array(sums.length);
        for (let m = 0; m < maps; m++)
          for (let p = 0; p < pixels; p++) y[m * pixels + p] = b[m] + sums[p * maps + m];
        return y;
      };
      return [step, [maps, rows, columns]];
    },
  };

  let shape = [2];
  const steps = layers.map(layer => {
    const [step, next] = kinds[layer.kind](layer, shape);
    shape = next;
    return step;
  });
  const decode = z => steps.reduce((x, step) => step(x), Float32Array.from(z));
  const [, height, width] = shape;

  const reach = 1.1 * limit;  // a margin, so that the handle is whole where z ends
  const place = (z1, z2) => `left: ${50 + 50 * z1 / reach}%; top: ${50 - 50 * z2 / reach}%`;
  const within = v => Math.min(Math.max(v, -limit), limit);
  const written = v => (Math.round(100 * v) / 100 || 0).toFixed(2).replace("-", "−");

  const markup = `
    <style>
      .vae-explorer {
        --paper: light-dark(#fff, #121212);
        --ink: light-dark(#1f2328, #e6e9ee);
        --quiet: light-dark(#57606a, #a3adb8);
        --line: light-dark(#c3c9d0, #4a525c);
        --rule: light-dark(#8b949e, #6e7681);
        --accent: light-dark(#0b5fc4, #79b8ff);
        color-scheme: light dark;
        container-type: inline-size;
        margin-inline: auto;
        max-width: 640px;
      }
      html[data-theme=light] .vae-explorer, [data-jp-theme-light=true] .vae-explorer {
        color-scheme: light;
      }
      html[data-theme=dark] .vae-explorer, [data-jp-theme-light=false] .vae-explorer {
        color-scheme: dark;
      }
      .text_html:has(> .vae-explorer .live) {
        background: none !important;  /* not the light box that the site's dark mode puts there */
        padding: 0 !important;
      }
      .vae-explorer .live {
        background: var(--paper);
        box-sizing: border-box;
        color: var(--ink);
        display: grid;
        font-size: 1rem;
        gap: 1rem;
        line-height: 1.4;
        padding: 4px;
        text-align: start;
      }
      .vae-explorer .plane {
        aspect-ratio: 1;
        border-radius: 6px;
        box-shadow: 0 0 0 1px var(--line);
        cursor: crosshair;
        position: relative;
        touch-action: none;
        user-select: none;
        -webkit-user-select: none;
      }
      .vae-explorer .plane:focus-visible {
        outline: 3px solid var(--accent);
        outline-offset: 1px;
      }
      .vae-explorer svg {
        display: block;
        fill: none;
        height: 100%;
        width: 100%;
      }
      .vae-explorer svg * {
        stroke-linecap: round;
        vector-effect: non-scaling-stroke;
      }
      .vae-explorer circle {
        stroke: var(--rule);
      }
      .vae-explorer .dots {
        opacity: 0.85;
        stroke-width: 5px;
      }
      .vae-explorer .plane span, .vae-explorer .handle {
        pointer-events: none;
        position: absolute;
        translate: -50% -50%;
      }
      .vae-explorer .plane span {
        -webkit-text-stroke: 4px var(--paper);
        line-height: 1;
        paint-order: stroke;  /* paper around the letters, not on them */
        white-space: nowrap;
      }
      .vae-explorer .class {
        border-bottom: 3px solid;
        font-size: 1.1rem;
        font-weight: 700;
      }
      .vae-explorer .note {
        background: var(--paper);
        color: var(--quiet);
        font-size: 0.8rem;
        padding-inline: 3px;
      }
      .vae-explorer .handle {
        background: radial-gradient(var(--accent) 3px, transparent 4px);
        border: 3px solid var(--accent);
        border-radius: 50%;
        box-shadow: 0 0 0 2px var(--paper), inset 0 0 0 2px var(--paper);
        box-sizing: border-box;
        height: 28px;
        width: 28px;
      }
      .vae-explorer .made {
        align-items: center;
        display: grid;
        gap: 0.75rem;
        grid-template-columns: minmax(0, 9rem) 1fr;
      }
      .vae-explorer .picture {
        background: var(--paper);
        box-shadow: 0 0 0 1px var(--line);
        isolation: isolate;
      }
      .vae-explorer canvas {
        display: block;
        image-rendering: pixelated;
        mix-blend-mode: difference;  /* white on the paper: ink, whatever the paper */
        width: 100%;
      }
      .vae-explorer output {
        display: block;
        font-variant-numeric: tabular-nums;
      }
      .vae-explorer p {
        color: var(--quiet);
        font-size: 0.85rem;
        margin: 0.25rem 0 0;
      }
      @container (min-width: 480px) {
        .vae-explorer .live {
          align-items: center;
          gap: 1.5rem;
          grid-template-columns: minmax(0, 2fr) minmax(0, 1fr);
        }
        .vae-explorer .made {
          grid-template-columns: minmax(0, 1fr);
        }
      }
    </style>
    <div class="live">
      <div class="plane" role="application" tabindex="0" data-lm-suppress-shortcuts="true"
        aria-label="Latent plane with a point z. Arrow keys move it, with Shift in larger steps.">
        <svg viewBox="${-reach} ${-reach} ${2 * reach} ${2 * reach}" aria-hidden="true">
          ${circles.map(({radius}) => `<circle r="${radius}"/>`).join("")}
          <g class="dots" transform="scale(1 -1)">
            ${classes.map(({color, dots}) => `<path d="${dots}" style="stroke: ${color}"/>`).join("")}
          </g>
        </svg>
        ${circles.map(({radius, name}) =>
          `<span class="note" style="${place(0, radius)}">${name}</span>`).join("")}
        <span class="note" style="left: 94%; top: 97%">z₁ →</span>
        <span class="note" style="left: 6%; top: 4%">↑ z₂</span>
        ${classes.map(({name, color, at}) =>
          `<span class="class" style="${place(...at.map(Number))}; border-color: ${color}">${name}</span>`
        ).join("")}
        <div class="handle"></div>
      </div>
      <div class="made">
        <div class="picture">
          <canvas width="${width}" height="${height}" role="img"
            aria-label="What the decoder makes of z"></canvas>
        </div>
        <div>
          <output aria-live="polite"></output>
          <p>Drag the point, or use the arrow keys.</p>
        </div>
      </div>
    </div>`;

  const start = container => {
    container.innerHTML = markup;
    const [plane, handle, canvas, output] = [".plane", ".handle", "canvas", "output"]
      .map(selector => container.querySelector(selector));
    const context = canvas.getContext("2d");
    let z = [0, 0], waiting = false;

    const draw = () => {
      waiting = false;
      const image = new ImageData(width, height);
      decode(z).forEach((ink, i) => image.data.set([255, 255, 255, 255 * ink], 4 * i));
      context.putImageData(image, 0, 0);
      handle.style = place(...z);
      output.value = `z = (${z.map(written).join(", ")})`;
    };
    const move = (z1, z2) => {
      z = [within(z1), within(z2)];
      if (!waiting) requestAnimationFrame(draw);  // which draws the newest z
      waiting = true;
    };
    const follow = event => {
      const {left, top, width, height} = plane.getBoundingClientRect();
      const [right, down] = [(event.clientX - left) / width, (event.clientY - top) / height];
      move(reach * (2 * right - 1), reach * (1 - 2 * down));
    };
    plane.addEventListener("pointerdown", event => {
      if (!event.isPrimary || event.button) return;
      plane.setPointerCapture(event.pointerId);
      follow(event);
    });
    plane.addEventListener("pointermove", event => {
      if (plane.hasPointerCapture(event.pointerId)) follow(event);
    });
    plane.addEventListener("keydown", event => {
      const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1]};
      const [right, up] = way[event.key] ?? [];
      if (right === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();  // the page would scroll
      const step = event.shiftKey ? 0.5 : 0.1;
      move(z[0] + step * right, z[1] + step * up);
    });
    container.decode = decode;
    draw();
  };

  // JupyterLab may show an output twice; found by the name, not as the script's neighbor, since
  // there scripts run from elsewhere.
  for (const container of document.querySelectorAll(`[id="${id}"]`))
    if (!container.decode) start(container);
}
