// A browser without a window draws no frames between loading and printing, and reveal.js waits
// for some: with ?print-pdf in the address, a timer stands in for them.
if (/print-pdf/i.test(window.location.search)) {
  window.requestAnimationFrame = (callback) => setTimeout(() => callback(performance.now()), 16);
}
