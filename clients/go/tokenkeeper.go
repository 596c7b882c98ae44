// Package tokenkeeper gives Go SDKs for WeChat their access tokens from a wechat-token-keeper. Copy this file.
//
// Checked: compiled with Go 1.19, vetted, and run against the local stack by the tests, with interfaces declared as in
// silenceper/wechat v2.1, PowerWeChat v3 and chanxuehong/wechat v2. The SDKs themselves were read, not run.
//
//	keeper, err := tokenkeeper.New("https://….execute-api.….amazonaws.com", "wtk_…", "wx…")
//
//	silenceper:   officialAccount.SetAccessTokenHandle(keeper)
//	              wechat.SetHTTPClient(&http.Client{Transport: keeper.Transport(nil)}) // heals; the SDK itself does not
//	PowerWeChat:  app.AccessToken.GetCustomToken = func(_ string, refused bool) object.HashMap { return keeper.Custom(refused) }
//	chanxuehong:  core.NewClient(keeper, nil)
package tokenkeeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const maxCache = 60 * time.Second

// Keeper is one account of a token keeper. Make one for each account, and share it.
type Keeper struct {
	url, key, appID string
	isCorp          bool
	client          *http.Client

	mutex    sync.Mutex // held while the keeper is asked, so that one call serves all
	token    string
	askedAt  time.Time
	cacheFor time.Duration
	promise  time.Duration
	retryAt  time.Time
	reported string
}

// New makes a keeper of an Official Account or Mini Program. The key is a consumer's, never the AppSecret.
func New(url, key, appID string) (*Keeper, error) {
	return newKeeper(url, key, appID, false)
}

// NewCorp makes a keeper of one app of a WeCom corp.
func NewCorp(url, key, corpID string) (*Keeper, error) {
	return newKeeper(url, key, corpID, true)
}

func newKeeper(url, key, appID string, isCorp bool) (*Keeper, error) {
	if !strings.HasPrefix(key, "wtk_") {
		return nil, errors.New("token keeper: the key is not a consumer key; `token-keeper consumers add` makes one")
	}
	client := &http.Client{Timeout: 25 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return &Keeper{url: strings.TrimRight(url, "/"), key: key, appID: appID, isCorp: isCorp, client: client}, nil
}

// Token returns the current access token, asked for at most once a minute. While the keeper cannot be asked, the cached
// token serves until its promise ends.
func (keeper *Keeper) Token() (string, error) {
	keeper.mutex.Lock()
	defer keeper.mutex.Unlock()
	return keeper.current()
}

// RefreshToken reports that WeChat refused this token, once for each value, and returns the one to go on with.
func (keeper *Keeper) RefreshToken(refused string) (string, error) {
	keeper.mutex.Lock()
	defer keeper.mutex.Unlock()
	if keeper.token != refused || keeper.reported == refused {
		return keeper.current()
	}
	// A report is about the keeper's current token: is that still this one?
	if err := keeper.ask(false); err != nil {
		return "", err
	}
	if keeper.token == refused && !keeper.isCorp {
		if err := keeper.ask(true); err != nil {
			return "", err
		}
	}
	keeper.reported = refused
	return keeper.token, nil
}

// GetAccessToken makes the keeper an AccessTokenHandle of silenceper/wechat.
func (keeper *Keeper) GetAccessToken() (string, error) {
	return keeper.Token()
}

// GetAccessTokenContext makes the keeper an AccessTokenContextHandle of silenceper/wechat.
func (keeper *Keeper) GetAccessTokenContext(context.Context) (string, error) {
	return keeper.Token()
}

// IID01332E16DF5011E5A9D5A4DB30FED8E1 makes the keeper an AccessTokenServer of chanxuehong/wechat.
func (keeper *Keeper) IID01332E16DF5011E5A9D5A4DB30FED8E1() {}

// Custom is what PowerWeChat's GetCustomToken returns. It knows no errors there: without a token PowerWeChat reports
// "no token found in cache".
func (keeper *Keeper) Custom(refused bool) map[string]interface{} {
	token, err := keeper.Token()
	if err == nil && refused {
		token, err = keeper.RefreshToken(token)
	}
	if err != nil {
		return map[string]interface{}{"expires_in": 0.0}
	}
	return map[string]interface{}{"access_token": token, "expires_in": maxCache.Seconds()}
}

// Transport repeats a call once with the successor where WeChat refuses the keeper's token; base nil is Go's default.
// It sends the keeper's token only where the SDK has put one.
func (keeper *Keeper) Transport(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return transport{keeper, base}
}

type transport struct {
	keeper *Keeper
	base   http.RoundTripper
}

func (t transport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.base.RoundTrip(request)
	refused := request.URL.Query().Get("access_token")
	if err != nil || refused == "" || !refusesToken(response) {
		return response, err
	}
	successor, err := t.keeper.RefreshToken(refused)
	if err != nil || successor == refused || (request.Body != nil && request.GetBody == nil) {
		return response, nil
	}
	again := request.Clone(request.Context())
	query := again.URL.Query()
	query.Set("access_token", successor)
	again.URL.RawQuery = query.Encode()
	if request.GetBody != nil {
		if again.Body, err = request.GetBody(); err != nil {
			return response, nil
		}
	}
	response.Body.Close()
	return t.base.RoundTrip(again)
}

// refusesToken reads what can be one of WeChat's error responses, and puts it back.
func refusesToken(response *http.Response) bool {
	kind := response.Header.Get("Content-Type")
	if !strings.HasPrefix(kind, "application/json") && !strings.HasPrefix(kind, "text/") {
		return false
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(body))
	var reply struct {
		Errcode int `json:"errcode"`
	}
	if err != nil || json.Unmarshal(body, &reply) != nil {
		return false
	}
	return reply.Errcode == 40001 || reply.Errcode == 40014 || reply.Errcode == 42001
}

func (keeper *Keeper) current() (string, error) {
	now := time.Now()
	if keeper.token != "" && (keeper.age(now) < keeper.cacheFor || (now.Before(keeper.retryAt) && keeper.age(now) < keeper.promise)) {
		return keeper.token, nil
	}
	err := keeper.ask(false)
	if err == nil {
		return keeper.token, nil
	}
	var unavailable unavailableError
	if errors.As(err, &unavailable) && keeper.token != "" && keeper.age(time.Now()) < keeper.promise {
		keeper.retryAt = time.Now().Add(2 * time.Second)
		return keeper.token, nil
	}
	return "", err
}

// age takes the clock that has advanced further: the monotonic one stands still while a machine sleeps.
func (keeper *Keeper) age(now time.Time) time.Duration {
	monotonic, wall := now.Sub(keeper.askedAt), now.Round(0).Sub(keeper.askedAt.Round(0))
	if monotonic > wall {
		return monotonic
	}
	return wall
}

type unavailableError string

func (err unavailableError) Error() string { return "token keeper: " + string(err) }

// ask fetches the token. No error carries the URL or the body, as they hold the key.
func (keeper *Keeper) ask(force bool) error {
	askedAt := time.Now()
	var response *http.Response
	var err error
	if keeper.isCorp {
		query := url.Values{"corpid": {keeper.appID}, "corpsecret": {keeper.key}}
		response, err = keeper.client.Get(keeper.url + "/cgi-bin/gettoken?" + query.Encode())
	} else {
		body, _ := json.Marshal(map[string]interface{}{
			"grant_type": "client_credential", "appid": keeper.appID, "secret": keeper.key, "force_refresh": force,
		})
		response, err = keeper.client.Post(keeper.url+"/cgi-bin/stable_token", "application/json", bytes.NewReader(body))
	}
	var failed *url.Error
	if errors.As(err, &failed) {
		return unavailableError(fmt.Sprintf("no response (%v); check the address and the network", failed.Err))
	}
	if err != nil {
		return unavailableError("no response; check the address and the network")
	}
	defer response.Body.Close()
	var reply struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Errcode     int    `json:"errcode"`
	}
	err = json.NewDecoder(io.LimitReader(response.Body, 65536)).Decode(&reply)
	switch {
	case response.StatusCode != http.StatusOK || err != nil:
		return unavailableError(fmt.Sprintf("HTTP %d, and no token", response.StatusCode))
	case reply.Errcode == 40125 || reply.Errcode == 40013:
		return fmt.Errorf("token keeper: errcode %d: the key is wrong or revoked, or may not read %s; see `token-keeper consumers list`", reply.Errcode, keeper.appID)
	case reply.AccessToken == "" || reply.ExpiresIn < 1:
		return unavailableError(fmt.Sprintf("errcode %d: no usable token for %s now; see `token-keeper status`", reply.Errcode, keeper.appID))
	}
	keeper.token, keeper.askedAt = reply.AccessToken, askedAt
	keeper.promise = time.Duration(reply.ExpiresIn) * time.Second
	keeper.cacheFor = maxCache
	if keeper.promise < maxCache {
		keeper.cacheFor = keeper.promise
	}
	return nil
}
