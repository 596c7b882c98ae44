// Calls WeChat by co-wechat-api for each line on standard input, and prints the errcode, 0 where all was well.
const { createInterface } = require('node:readline');
const WechatAPI = require('co-wechat-api');
const { keeperApi } = require('./wechat-token-keeper.js');

const [url, key, appid, wechat] = process.argv.slice(2);
const api = keeperApi(WechatAPI, { url, key, appid });
api.prefix = `${wechat}/cgi-bin/`;

(async () => {
  for await (const _ of createInterface({ input: process.stdin })) {
    try {
      // As the SDK's own methods begin; the simulated WeChat knows this call only.
      const { accessToken } = await api.ensureAccessToken();
      const reply = await api.request(`${api.prefix}get_api_domain_ip?access_token=${accessToken}`);
      console.log(reply.ip_list.length > 0 ? 0 : 'no addresses');
    } catch (error) {
      const shown = `${error.message} ${error.stack}`;
      console.log(shown.includes('simulated_token') ? 'the error shows the token' : error.code ?? error.message);
    }
  }
})();
