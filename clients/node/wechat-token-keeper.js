'use strict';

// Access tokens of a wechat-token-keeper for co-wechat-api (Node 18 and newer). Copy this file.
//
// Checked: run by the tests with co-wechat-api 3.11.0 as published, against the local stack.
//
//   const api = keeperApi(require('co-wechat-api'), {
//     url: 'https://….execute-api.….amazonaws.com', key: 'wtk_…', appid: 'wx…',
//   });

const MAX_CACHE_SECONDS = 60;
const PAUSE_AFTER_FAILURE = 2; // seconds
const TIMEOUT = 25_000; // milliseconds; the keeper's own limit is 20 seconds
const REFUSED_TOKEN = [40001, 40014, 42001];

/** One account of a token keeper: make one for each process, and share it. */
class TokenKeeper {
  #key;
  #token = null; // {value, askedAt, cacheFor, expiresIn}
  #pending = null;
  #reports = new Map(); // token → the promise of its report

  constructor({ url, key, appid }) {
    if (!/^wtk_[\w-]+$/.test(key)) {
      throw new TypeError('The key is not a consumer key: `token-keeper consumers add` makes one.');
    }
    this.url = url.replace(/\/+$/, '');
    this.#key = key;
    this.appid = appid;
  }

  /** The current token, by one call a minute. While the keeper cannot be asked, the cached one serves as promised. */
  async token() {
    const cached = this.#token;
    if (cached && age(cached) < cached.cacheFor) return cached.value;
    this.#pending ??= this.#refresh().finally(() => { this.#pending = null; });
    return this.#pending;
  }

  /** Report that WeChat refused this token, once for each value; gives the token to go on with. */
  async report(refused) {
    if (this.#token && this.#token.value !== refused) return this.token();
    if (this.#reports.has(refused)) {
      await this.#reports.get(refused);
      return this.token();
    }
    const report = (async () => {
      // A report is about the keeper's current token: is that still this one?
      await this.#ask(false);
      if (this.#token.value === refused) await this.#ask(true);
    })();
    if (this.#reports.size >= 100) this.#reports.delete(this.#reports.keys().next().value);
    this.#reports.set(refused, report);
    try {
      await report;
    } catch (error) {
      this.#reports.delete(refused);
      throw error;
    }
    return this.#token.value;
  }

  async #refresh() {
    try {
      await this.#ask(false);
    } catch (error) {
      const cached = this.#token;
      if (!error.isTransient || !cached || age(cached) >= cached.expiresIn) throw error;
      cached.cacheFor = Math.min(age(cached) + PAUSE_AFTER_FAILURE, cached.expiresIn);
    }
    return this.#token.value;
  }

  async #ask(force) {
    const askedAt = now();
    const body = { grant_type: 'client_credential', appid: this.appid, secret: this.#key, force_refresh: force };
    let reply;
    try {
      const response = await fetch(`${this.url}/cgi-bin/stable_token`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
        redirect: 'error',
        signal: AbortSignal.timeout(TIMEOUT),
      });
      reply = await response.json();
    } catch (error) {
      const cause = error.cause?.code ?? error.name;
      throw keeperError(`The token keeper did not respond (${cause}): check its address and the network.`, true);
    }
    const { access_token: value, expires_in: expiresIn, errcode } = reply;
    if (errcode === 40125 || errcode === 40013) {
      throw keeperError(
        `errcode ${errcode}: the key is wrong or revoked, or may not read ${this.appid}. See \`token-keeper consumers list\`.`,
        false,
      );
    }
    if (!value || !(expiresIn >= 1)) {
      throw keeperError(`No usable token for ${this.appid} right now: \`token-keeper status\` shows why.`, true);
    }
    if (this.#token && this.#token.askedAt.monotonic > askedAt.monotonic) return; // superseded by a later response
    this.#token = { value, askedAt, expiresIn, cacheFor: Math.min(expiresIn, MAX_CACHE_SECONDS) };
  }
}

/** A client of co-wechat-api whose tokens come from the keeper. A refused call is repeated once, unless its body is a stream. */
function keeperApi(WechatAPI, options) {
  const keeper = new TokenKeeper(options);

  class KeeperApi extends WechatAPI {
    async getAccessToken() {
      return new WechatAPI.AccessToken(await keeper.token(), Date.now() + 1000);
    }

    async ensureAccessToken() {
      return this.getAccessToken();
    }

    async request(url, opts = {}) {
      try {
        return await this.#once(url, opts);
      } catch (error) {
        const refused = new URL(url).searchParams.get('access_token');
        if (!refused || !REFUSED_TOKEN.includes(error.code)) throw error;
        const successor = await keeper.report(refused).catch(() => refused);
        if (successor === refused || typeof opts.data?.pipe === 'function') throw error;
        return this.#once(url.replace(refused, successor), opts);
      }
    }

    async #once(url, opts) {
      try {
        return await super.request(url, opts, 0); // without the SDK's own three repetitions
      } catch (error) {
        const token = new URL(url).searchParams.get('access_token');
        for (const field of token ? ['message', 'stack'] : []) error[field] = error[field].replaceAll(token, '***');
        throw error;
      }
    }
  }

  return new KeeperApi(options.appid, '');
}

function now() {
  return { monotonic: performance.now() / 1000, wall: Date.now() / 1000 };
}

/** Seconds, by the clock that has advanced further: the monotonic one stands still while a machine sleeps. */
function age({ askedAt }) {
  const { monotonic, wall } = now();
  return Math.max(monotonic - askedAt.monotonic, wall - askedAt.wall);
}

function keeperError(message, isTransient) {
  return Object.assign(new Error(message), { name: 'TokenKeeperError', isTransient });
}

module.exports = { TokenKeeper, keeperApi };
