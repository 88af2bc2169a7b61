// Answers the search box: a worker in the place of the theme's own, which would fetch its
// index with every first visit. This one fetches it when the first letter is typed.
const READY = 1, QUERY = 2, RESULT = 3; // the theme's messages

// Words of a question that say nothing of its subject.
const EMPTY = new Set(`a about after all am an and any are as at be because been but by can
  could did do does doing even for from get gets getting give gives had has have how i if in into
  is isn it its just me my need no not of on or our please s same should so some still t than
  that the their them then there these they this those to too use used using want was we were
  what when where which who whose why will with without would you your`.split(/\s+/));

// Two ways to write one thing: the left one is read as the right one.
const ALIKE = {
  kld: "kl", divergence: "kl", kullback: "kl", leibler: "kl", logprob: "log prob", logprobs: "log probs", logp: "log prob",
  bf16: "bfloat16 bf16", fp16: "float16 fp16", fp32: "float32 fp32",
  "β": "beta", "ρ": "rho", "ε": "epsilon", "δ": "delta", "λ": "lambda", "η": "eta",
};

// What a word is worth by where it stands, and by how much a long field thins it.
const FIELDS = {
  title: [4, 0.7], page: [8, 0.3], words: [8, 0], text: [1, 0.8], code: [0.3, 0.7],
};
const NAMES = Object.keys(FIELDS);

const WORD = /([\p{L}\p{N}_]+)/u;

const stem = (word) => (word.length < 4 || /[\d_]/.test(word) ? word : word
  .replace(/(?:ies|es|s)$/, (end) => ({ ies: "y", es: "e", s: "" })[end])
  .replace(/([^s])(?:ing|ed)$/, "$1")
  .replace(/([bdglmnprt])\1$/, "$1")
  .replace(/e$/, ""));

// The words of a text, and the parts of names such as kl_loss_coef.
const tokens = (text) => text.toLowerCase().split(WORD).flatMap((word, odd) => {
  if (odd % 2 === 0) return [];
  const parts = word.split("_").filter(Boolean);
  const words = parts.flatMap((part) => (ALIKE[part]?.split(" ") ?? [part]).map(stem));
  return parts.length > 1 ? [word, ...words] : words;
});

const LISTING = /<pre>.*?<\/pre>/gs;
const BREAK = /<\/(?:p|li|td|th|dd|dt|tr|summary|div)>|\n\n/g;
const SIGNS = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&amp;": "&" };
const plain = (html) => html.replace(/<[^>]*>/g, "").replace(/&(?:lt|gt|quot|#39|amp);/g, (s) => SIGNS[s]);
const escape = (text) => text.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt()};`);

const add = (counts, words) => {
  for (const [word, n] of words) counts.set(word, (counts.get(word) ?? 0) + n);
  return counts;
};

const count = (text) => add(new Map(), tokens(text).map((word) => [word, 1]));

// BM25F: how much of each word an entry has, thinned by length, summed over its fields.
function weigh(entries) {
  const length = (entry, name) => [...entry.counts[name].values()].reduce((a, b) => a + b, 0);
  for (const name of NAMES) {
    const [worth, thin] = FIELDS[name];
    const mean = entries.reduce((sum, entry) => sum + length(entry, name), 0) / entries.length || 1;
    for (const entry of entries) {
      const scale = worth / (1 - thin + (thin * length(entry, name)) / mean);
      entry.weights ??= new Map();
      add(entry.weights, [...entry.counts[name]].map(([word, n]) => [word, n * scale]));
    }
  }
}

class Index {
  constructor(docs) {
    this.pages = new Map(); // a page's own entry comes before those of its sections
    for (const { location, title, text, tags } of docs) {
      const path = location.split("#")[0], whole = location === path;
      if (!this.pages.has(path)) this.pages.set(path, { title: plain(title), words: (tags ?? []).join(" "), sections: [] });
      const page = this.pages.get(path);
      const prose = text.replace(LISTING, "\n\n");
      const read = {
        title: plain(title), page: whole ? "" : page.title,
        words: "", // are the page's
        text: plain(prose.replace(BREAK, " ")), code: plain((text.match(LISTING) ?? []).join(" ")),
      };
      const counts = Object.fromEntries(NAMES.map((name) => [name, count(read[name])]));
      page.sections.push({ location, title: read.title, prose, counts });
    }
    for (const page of this.pages.values()) {
      page.counts = Object.fromEntries(NAMES.map((name) => [name, new Map()]));
      for (const { counts } of page.sections) {
        for (const name of ["title", "text", "code"]) add(page.counts[name], counts[name]);
      }
      page.counts.page = count(page.title);
      page.counts.words = count(page.words);
    }
    weigh([...this.pages.values()]);
    weigh([...this.pages.values()].flatMap((page) => page.sections));
    this.known = new Map(); // of each word, on how many pages it stands
    for (const { weights } of this.pages.values()) add(this.known, [...weights.keys()].map((word) => [word, 1]));
  }

  // The words that one word of a question stands for, each with what it is worth here. The
  // last one may not be finished.
  meanings(word, last) {
    const rare = (known) => Math.log(1 + this.pages.size / this.known.get(known));
    const found = new Map(this.known.has(word) ? [[word, rare(word)]] : []);
    const share = found.size ? 0.3 : 0.8;
    if (last || !found.size) {
      for (const known of this.known.keys()) {
        if (known !== word && known.startsWith(word)) found.set(known, share * rare(known));
      }
    }
    return found;
  }

  // The best of each word's meanings, summed.
  rate(entry, asked) {
    return asked.reduce((sum, meanings) => {
      let best = 0;
      for (const [word, worth] of meanings) {
        const weight = entry.weights.get(word);
        if (weight) best = Math.max(best, (worth * weight) / (3 + weight));
      }
      return sum + best;
    }, 0);
  }

  search(query) {
    const typed = [...new Set(tokens(query))];
    const telling = typed.filter((word) => !EMPTY.has(word));
    const last = /[\p{L}\p{N}_]$/u.test(query) ? typed.at(-1) : undefined;
    const asked = (telling.length ? telling : typed).map((word) => this.meanings(word, word === last));
    const hits = new Map(asked.flatMap((meanings) => [...meanings]));
    const found = [...this.pages.values()].filter((page) => this.rate(page, asked)).map((page) => {
      const sections = page.sections
        .map((section) => ({ section, score: this.rate(section, asked) }))
        .sort((a, b) => b.score - a.score);
      return { sections, score: this.rate(page, asked) + sections[0].score };
    }).sort((a, b) => b.score - a.score).slice(0, 12);
    return { items: found.map(({ sections, score }) => group(sections, score, hits)) };
  }
}

// What the theme shows of a page: its title, its best section, and up to three more folded.
function group(sections, worth, hits) {
  const [best] = sections;
  const shown = sections.slice(0, 4).filter(({ score }) => score > best.score / 2);
  const own = sections.find(({ section }) => !section.location.includes("#"));
  if (!shown.includes(own)) shown.push(own);
  return shown.map(({ section, score }) => ({
    location: section.location, title: marked(section.title, hits), text: teaser(section.prose, hits),
    score: (worth * score) / (best.score || 1), terms: {}, // Enter opens the highest
  }));
}

// The sentence that says most of what was asked, or the first one.
function teaser(prose, hits) {
  const sentences = prose.split(BREAK).flatMap((part) => plain(part).split(/(?<=[.!?]) +(?=\p{Lu})/u))
    .map((sentence) => sentence.replace(/\s+/g, " ").trim()).filter((sentence) => /\p{L}{2}/u.test(sentence));
  const worth = (sentence) => [...new Set(tokens(sentence))].reduce((sum, word) => sum + (hits.get(word) ?? 0), 0);
  let best = sentences[0] ?? "", most = 0;
  for (const sentence of sentences) {
    const here = worth(sentence) * (sentence.length < 40 ? 0.5 : 1);
    if (here > most) [best, most] = [sentence, here];
  }
  return best && `<p>${marked(best.length > 240 ? `${best.slice(0, 240).replace(/\S*$/, "")}…` : best, hits)}</p>`;
}

const marked = (text, hits) => text.split(WORD).map((piece, odd) =>
  (odd % 2 && tokens(piece).some((word) => hits.has(word)) ? `<mark>${escape(piece)}</mark>` : escape(piece))).join("");

let index;
const fetched = () => fetch(new URL("../search/search_index.json", location))
  .then((answer) => answer.json()).then(({ docs }) => new Index(docs))
  .catch(() => { index = undefined; }); // asked again at the next letter

let latest = 0;
addEventListener("message", async ({ data: { type, data: query } }) => {
  if (type !== QUERY) return;
  const mine = ++latest;
  const ready = query.trim() ? await (index ??= fetched()) : undefined;
  await new Promise((done) => { setTimeout(done); }); // letters that wait come first
  if (mine !== latest) return;
  const found = ready?.search(query);
  postMessage({ type: RESULT, data: found ?? { items: [] } });
});
postMessage({ type: READY });
