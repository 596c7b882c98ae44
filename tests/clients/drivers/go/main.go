// Calls WeChat with the keeper's token for each line on standard input, and prints the errcode, 0 where all was well.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"driver/tokenkeeper"
)

// As silenceper/wechat v2.1 (credential), PowerWeChat v3 (kernel) and chanxuehong/wechat v2 (mp/core) declare them.
type accessTokenHandle interface {
	GetAccessToken() (accessToken string, err error)
}

type accessTokenContextHandle interface {
	accessTokenHandle
	GetAccessTokenContext(ctx context.Context) (accessToken string, err error)
}

type accessTokenServer interface {
	Token() (token string, err error)
	RefreshToken(currentToken string) (token string, err error)
	IID01332E16DF5011E5A9D5A4DB30FED8E1()
}

type hashMap map[string]interface{}

func main() {
	url, key, appID, wechat := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	keeper, err := tokenkeeper.New(url, key, appID)
	if err != nil {
		panic(err)
	}
	var handle accessTokenContextHandle = keeper
	var _ accessTokenServer = keeper
	var custom func(key string, refresh bool) hashMap = func(_ string, refused bool) hashMap { return keeper.Custom(refused) }
	client := &http.Client{Transport: keeper.Transport(nil)}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		token, err := handle.GetAccessToken()
		if err != nil {
			fmt.Println(err)
			continue
		}
		if shown := custom("", false); shown["access_token"].(string) != token || shown["expires_in"].(float64) != 60 {
			fmt.Println("PowerWeChat would get something else")
			continue
		}
		response, err := client.Get(wechat + "/cgi-bin/get_api_domain_ip?access_token=" + token)
		if err != nil {
			fmt.Println("no response of WeChat's")
			continue
		}
		var reply struct {
			Errcode int `json:"errcode"`
		}
		err = json.NewDecoder(response.Body).Decode(&reply)
		response.Body.Close()
		fmt.Println(reply.Errcode)
	}
}
